"use strict";
// Sends a chosen or dropped file unchanged, and offers the result, a CSV file with label, score and version.

const drop = document.getElementById("drop");
const outcome = document.getElementById("scored");

function problemOf(title, detail) {
  const card = document.createElement("div");
  card.className = "card problem";
  card.setAttribute("role", "alert");
  card.append(Object.assign(document.createElement("h3"), { textContent: title }), Object.assign(document.createElement("p"), { textContent: detail }));
  return card;
}

function listOf(notes) {
  const list = document.createElement("ul");
  list.append(...notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })));
  return list;
}

async function scoreFile(file) {
  const input = document.getElementById("file");
  if (file.size > Number(drop.dataset.bytes)) {
    outcome.replaceChildren(problemOf("The file is too large", `${file.name} has ${file.size.toLocaleString("en")} bytes; ${Number(drop.dataset.bytes).toLocaleString("en")} can be scored here. python app.py score takes files of any size.`));
    return;
  }
  input.disabled = true;
  document.getElementById("scoring").classList.add("htmx-request");
  outcome.replaceChildren();
  try {
    const headers = { "Content-Type": "text/csv", "HX-Request": "true", ...actionHeaders() };
    const asked = new URLSearchParams({ suffix: (file.name.match(/(\.\w+)?\.\w+$/) || [""])[0], column: document.getElementById("text-column").value });
    const answer = await fetch(`${drop.dataset.target}?${asked}`, { method: "POST", body: file, headers });
    const type = answer.headers.get("Content-Type") || "";
    if (answer.ok) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await answer.blob());
      link.download = `scored-${file.name.replace(/(\.(csv|tsv|txt|jsonl|ndjson))?(\.(gz|zst))?$/i, "")}.csv`;
      link.className = "button primary";
      link.textContent = `Save ${link.download}`;
      const told = document.createElement("p");
      told.className = "told";
      const rejected = Number(answer.headers.get("X-Rejected-Rows"));
      const left = rejected ? ` Left out, because they cannot be classified: ${rejected.toLocaleString("en")}.` : "";
      told.textContent = `✓ ${Number(answer.headers.get("X-Rows")).toLocaleString("en")} rows, scored with version ${answer.headers.get("X-Model-Version")}.${left}`;
      outcome.replaceChildren(told, listOf(JSON.parse(answer.headers.get("X-Notes"))), link);
      link.click();
    } else if (type.startsWith("text/html")) {
      // The gateway rendered this HTML and escaped everything from the file.
      outcome.innerHTML = await answer.text();
    } else {
      outcome.replaceChildren(problemOf("The file was not scored", (await answer.json()).detail));
    }
  } catch {
    outcome.replaceChildren(problemOf("The file was not scored", "The gateway cannot be reached, or the file cannot be read. Try again."));
  } finally {
    input.disabled = false;
    input.value = "";
    document.getElementById("scoring").classList.remove("htmx-request");
  }
}

drop.hidden = false;
document.getElementById("file").addEventListener("change", (event) => event.target.files.length && scoreFile(event.target.files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) scoreFile(event.dataTransfer.files[0]);
  });
}
