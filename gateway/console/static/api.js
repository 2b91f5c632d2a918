"use strict";
// The API's page: Swagger UI with the description that this gateway serves.

SwaggerUIBundle({ url: document.getElementById("swagger-ui").dataset.openapi, dom_id: "#swagger-ui", deepLinking: true });
