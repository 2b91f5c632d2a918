"use strict";
// Label: shows one text at a time, with a keyboard key for each label. Without this script, all texts are shown as forms.

// A label is sent after this many milliseconds, or with the next one. If it is undone before, it is never sent.
const HELD_MS = 10_000;

function beginLabelling(section) {
  const cards = [...section.querySelectorAll(".label-card")];
  const tools = section.querySelector("[data-tools]");
  const undo = section.querySelector("[data-undo]");
  const [said, done] = ["said", "done"].map((name) => section.querySelector(`[data-${name}]`));
  const standing = document.querySelector("[data-standing]");
  const past = []; // actions, newest last: {card, button}
  const sent = new Map(); // names of the buttons that were sent, or are being sent, by card
  const waiting = [...cards];
  const sending = new Set();
  let held = null;
  let timer = 0;
  let isDecided = false;

  const say = (text) => (said.textContent = text);
  const name = (button) => (button.name === "label" ? button.value : "left out");

  function shortened(card) {
    const text = card.querySelector("blockquote").textContent;
    return text.length > 60 ? `${text.slice(0, 60)}…` : text;
  }

  function show(takesFocus = true) {
    const current = isDecided ? undefined : waiting[0];
    for (const card of cards) card.hidden = card !== current;
    tools.hidden = isDecided;
    undo.disabled = past.length === 0;
    done.hidden = current !== undefined;
    done.textContent = isDecided ? "Decided: no more labels are needed. Thank you." : "More texts are coming …";
    if (takesFocus) (current ? current.querySelector("h2") : done).focus();
  }

  // `keepalive` sends the label even if the user leaves the page.
  async function send({ card, button }) {
    const fields = new URLSearchParams(new FormData(card));
    fields.set(button.name, button.value);
    const before = sent.get(card);
    sent.set(card, name(button));
    let problem = "The gateway cannot be reached.";
    try {
      const answer = await fetch(button.formAction, { method: "POST", body: fields, headers: { "HX-Request": "true", ...actionHeaders() }, keepalive: true });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (answer.ok) {
        standing.replaceChildren(...page.body.childNodes);
        isDecided ||= standing.querySelector("[data-decided]") !== null;
        if (isDecided) show(!document.hidden);
        return;
      }
      problem = page.querySelector("[role=alert] p, [role=alert] li")?.textContent || `The gateway answered with status ${answer.status}.`;
    } catch {
      // the gateway cannot be reached
    }
    // A text whose label was not stored is shown again.
    if (before === undefined) sent.delete(card);
    else sent.set(card, before);
    if (!waiting.includes(card)) waiting.push(card);
    tell(`A label was not kept: ${problem} Its text comes again at the end.`);
    show(!card.ownerDocument.hidden);
  }

  function letGo() {
    clearTimeout(timer);
    const letting = held;
    held = null;
    if (!letting) return;
    const promise = send(letting).finally(() => sending.delete(promise));
    sending.add(promise);
  }

  async function showMore() {
    letGo();
    await Promise.all(sending);
    if (!waiting.length && !isDecided) location.reload();
  }

  function next(button) {
    const card = waiting.shift();
    if (card === undefined) return;
    letGo();
    past.push({ card, button });
    held = { card, button };
    timer = setTimeout(letGo, HELD_MS);
    say(`${name(button)}, for “${shortened(card)}”`);
    show();
    if (!waiting.length) showMore();
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
    const before = sent.get(last.card);
    if (before === undefined) say("Undone.");
    else if (before === "left out") say("It was left out already; a label still teaches the model.");
    else say(`It was kept as ${before}; another label takes its place.`);
    show();
  }

  section.addEventListener("submit", (event) => {
    event.preventDefault();
    if (event.submitter) next(event.submitter);
  });
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

for (const section of document.querySelectorAll("[data-labels]")) beginLabelling(section);
