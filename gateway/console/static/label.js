"use strict";
// Label: shows one text at a time, with a keyboard key for each label. Without this script, all texts are shown as forms.

// A label is sent after this many milliseconds, or with the next label. If it is undone before, it is never sent.
const HELD_MS = 10_000;

function beginLabelling(section) {
  const cards = [...section.querySelectorAll(".label-card")];
  const tools = section.querySelector("[data-tools]");
  const [undo, skip] = [section.querySelector("[data-undo]"), section.querySelector("[data-skip]")];
  const [count, said, done] = ["count", "said", "done"].map((name) => section.querySelector(`[data-${name}]`));
  const past = []; // actions, newest last: {card, label}; no label if the text was skipped
  const kept = new Map(); // labels that were sent, or are being sent, by card
  const waiting = [...cards];
  let held = null;
  let timer = 0;

  const say = (text) => (said.textContent = text);

  function shortened(card) {
    const text = card.querySelector("blockquote").textContent;
    return text.length > 60 ? `${text.slice(0, 60)}…` : text;
  }

  function show(takesFocus = true) {
    const current = waiting[0];
    for (const card of cards) card.hidden = card !== current;
    tools.hidden = false;
    skip.disabled = current === undefined;
    undo.disabled = past.length === 0;
    const labels = kept.size + (held ? 1 : 0);
    count.textContent = `${waiting.length} left, ${labels} labelled`;
    done.hidden = current !== undefined;
    done.textContent = `That was all: ${labels} labelled. Look again for more.`;
    if (takesFocus) (current ? current.querySelector("h2") : done).focus();
  }

  // `keepalive` sends the label even if the user leaves the page.
  async function send({ card, label }) {
    const fields = new URLSearchParams(new FormData(card));
    fields.set("label", label);
    const before = kept.get(card);
    kept.set(card, label);
    let problem = "The gateway cannot be reached.";
    try {
      const answer = await fetch(card.action, { method: "POST", body: fields, headers: { "HX-Request": "true", ...actionHeaders() }, keepalive: true });
      if (answer.ok) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      problem = page.querySelector("[role=alert] p, [role=alert] li")?.textContent || `The gateway answered with status ${answer.status}.`;
    } catch {
      // the gateway cannot be reached
    }
    // A text whose label was not stored is shown again.
    if (before === undefined) kept.delete(card);
    else kept.set(card, before);
    if (!waiting.includes(card)) waiting.push(card);
    tell(`A label was not kept: ${problem} Its text comes again at the end.`);
    show(!card.ownerDocument.hidden);
  }

  function letGo() {
    clearTimeout(timer);
    const letting = held;
    held = null;
    if (letting) send(letting);
  }

  function next(label) {
    const card = waiting.shift();
    if (card === undefined) return;
    letGo();
    past.push({ card, label });
    if (label !== undefined) {
      held = { card, label };
      timer = setTimeout(letGo, HELD_MS);
    }
    say(label === undefined ? "Skipped." : `${label}, for “${shortened(card)}”`);
    show();
  }

  function goBack() {
    const last = past.pop();
    if (last === undefined) return;
    if (held?.card === last.card) {
      clearTimeout(timer);
      held = null;
    }
    const again = waiting.indexOf(last.card);
    if (again >= 0) waiting.splice(again, 1);
    waiting.unshift(last.card);
    const label = kept.get(last.card);
    say(label === undefined ? "Undone." : `It was kept as ${label}; another label takes its place.`);
    show();
  }

  section.addEventListener("submit", (event) => {
    event.preventDefault();
    if (event.submitter?.name === "label") next(event.submitter.value);
  });
  skip.addEventListener("click", () => next());
  undo.addEventListener("click", goBack);
  // Only while the focus is in this section: single-key shortcuts must not work elsewhere (WCAG 2.1.4).
  section.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
    const key = event.key.toLowerCase();
    const button = section.querySelector(`form:not([hidden]) [aria-keyshortcuts="${CSS.escape(key)}"], [data-tools] [aria-keyshortcuts="${CSS.escape(key)}"]`);
    if (button && !button.disabled) {
      event.preventDefault();
      button.click();
    }
  });
  addEventListener("pagehide", letGo);
  document.addEventListener("visibilitychange", () => document.hidden && letGo());
  show(document.activeElement === document.body);
}

for (const section of document.querySelectorAll("[data-labels]")) {
  if (section.querySelector(".choices")) beginLabelling(section);
}
