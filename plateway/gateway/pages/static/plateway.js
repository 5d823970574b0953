// Only what the keyboard and the clipboard gain by; every page is whole without it.
"use strict";

const within = (element, selector) => [...element.querySelectorAll(selector)];

// Arrow keys go from image to image in a sheet, up and down by what is drawn there.
for (const sheet of within(document, "[data-sheet]")) {
  const links = within(sheet, "a");
  sheet.addEventListener("keydown", (event) => {
    const at = links.indexOf(document.activeElement);
    if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const next = step(links, at, event.key);
    if (next) {
      event.preventDefault();
      next.focus();
    }
  });
}

function step(links, at, key) {
  if (key === "ArrowRight") return links[at + 1];
  if (key === "ArrowLeft") return links[at - 1];
  if (key === "Home") return links[0];
  if (key === "End") return links[links.length - 1];
  if (key !== "ArrowDown" && key !== "ArrowUp") return undefined;
  const here = links[at].getBoundingClientRect();
  const down = key === "ArrowDown";
  const order = down ? links.slice(at + 1) : links.slice(0, at).reverse();
  const apart = (link) => link.getBoundingClientRect().top - here.top;
  const row = order.find((link) => Math.abs(apart(link)) > here.height / 2);
  if (!row) return undefined;
  const level = row.getBoundingClientRect().top;
  const same = order.filter((link) => Math.abs(link.getBoundingClientRect().top - level) < here.height / 2);
  const off = (link) => Math.abs(link.getBoundingClientRect().left - here.left);
  return same.reduce((best, link) => (off(link) < off(best) ? link : best));
}

// On the page of one image, and nowhere else, they lead to the one before and after. A slash goes to the search box.
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea")) return;
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  const link = rel && document.querySelector(`[data-keys] a[rel=${rel}]`);
  if (link) link.click();
  const box = event.key === "/" && document.getElementById("q");
  if (box) {
    event.preventDefault();
    box.select();
  }
});

// Filters apply when they are changed; empty ones stay out of the address.
for (const form of within(document, "[data-apply]")) {
  form.addEventListener("formdata", (event) => {
    for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
  });
  for (const field of within(form, ".fields input, .fields select")) {
    field.addEventListener("change", () => form.requestSubmit());
  }
}

// What cannot be drawn says why.
for (const image of within(document, "[data-sheet] img")) {
  const broken = async () => {
    image.classList.add("broken");
    const told = await fetch(image.currentSrc || image.src).then((answer) => answer.json()).catch(() => null);
    const reason = document.createElement("small");
    reason.className = "reason";
    reason.textContent = (told && told.error && told.error.message) || "no picture";
    image.after(reason);
  };
  image.addEventListener("error", broken, { once: true });
  if (image.complete && image.currentSrc && !image.naturalWidth) broken();
}

// Keys and checksums are there to be copied.
if (navigator.clipboard) {
  for (const code of within(document, "[data-copy]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy ${code.textContent}`);
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    code.after(" ", button);
  }
}

// Figures are renewed while they are looked at, unless something is opened or has the focus.
const fresh = document.querySelector("[data-refresh]");
if (fresh) {
  const main = document.getElementById("main");
  setInterval(async () => {
    const busy = main.querySelector("details[open]") || (main !== document.activeElement && main.contains(document.activeElement));
    if (document.hidden || busy) return;
    const page = await fetch(location.href).then((answer) => (answer.ok && !answer.redirected ? answer.text() : "")).catch(() => "");
    const renewed = page && new DOMParser().parseFromString(page, "text/html").getElementById("main");
    if (renewed) main.replaceChildren(...renewed.childNodes);
  }, 1000 * Number(fresh.dataset.refresh));
}
