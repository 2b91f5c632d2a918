"use strict";
// A CSV file, chosen or dropped, is sent as it is, and comes back with label, score and version.

const drop = document.getElementById("drop");
const outcome = document.getElementById("scored");

function problemOf(title, detail) {
  const card = document.createElement("div");
  card.className = "card problem";
  card.setAttribute("role", "alert");
  card.append(Object.assign(document.createElement("h3"), { textContent: title }), Object.assign(document.createElement("p"), { textContent: detail }));
  return card;
}

async function scoreFile(file) {
  const input = drop.querySelector("input");
  if (file.size > Number(drop.dataset.bytes)) {
    outcome.replaceChildren(problemOf("The file is too large", `${file.name} has ${file.size.toLocaleString("en")} bytes; ${Number(drop.dataset.bytes).toLocaleString("en")} can be scored here. python app.py score takes files of any size.`));
    return;
  }
  input.disabled = true;
  document.getElementById("scoring").classList.add("htmx-request");
  outcome.replaceChildren();
  try {
    const headers = { "Content-Type": "text/csv", "HX-Request": "true", ...JSON.parse(document.body.getAttribute("hx-headers") || "{}") };
    const answer = await fetch(drop.dataset.target, { method: "POST", body: file, headers });
    const type = answer.headers.get("Content-Type") || "";
    if (answer.ok) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await answer.blob());
      link.download = `scored-${file.name}`;
      link.className = "button primary";
      link.textContent = `Save ${link.download}`;
      const told = document.createElement("p");
      told.className = "told";
      told.textContent = `✓ ${Number(answer.headers.get("X-Rows")).toLocaleString("en")} rows, scored by version ${answer.headers.get("X-Model-Version")}.`;
      outcome.replaceChildren(told, link);
      link.click();
    } else if (type.startsWith("text/html")) {
      // Of the gateway's own making, with all that was in the file escaped.
      outcome.innerHTML = await answer.text();
    } else {
      outcome.replaceChildren(problemOf("The file was not scored", (await answer.json()).detail));
    }
  } catch {
    outcome.replaceChildren(problemOf("The file was not scored", "The gateway cannot be reached, or the file could not be read. Try it again."));
  } finally {
    input.disabled = false;
    input.value = "";
    document.getElementById("scoring").classList.remove("htmx-request");
  }
}

drop.hidden = false;
drop.addEventListener("change", (event) => event.target.files.length && scoreFile(event.target.files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) scoreFile(event.dataTransfer.files[0]);
  });
}
