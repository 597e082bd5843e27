"use strict";
// Text from the page's own elements is moved as nodes or as textContent, never as markup.
(() => {
  const byId = (id) => document.getElementById(id);

  // Theme: the system's until the button is pressed, then the reader's choice.
  const root = document.documentElement;
  const themeButton = byId("theme");
  const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("bind-data-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
  const showTheme = () => {
    themeButton.setAttribute("aria-pressed", String(isDark()));
    themeButton.querySelector(".label").textContent = isDark() ? "Light" : "Dark";
  };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
  themeButton.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("bind-data-theme", root.dataset.theme); } catch { /* for this visit only */ }
    showTheme();
  });
  systemDark.addEventListener("change", showTheme);
  themeButton.hidden = false;
  showTheme();

  // Findings.
  const expand = byId("expand");
  if (expand) {
    const groups = [...document.querySelectorAll("details.group")];
    const allOpen = () => groups.every((group) => group.open);
    const label = () => { expand.textContent = allOpen() ? "Collapse all" : "Expand all"; };
    expand.hidden = false;
    expand.addEventListener("click", () => {
      const open = !allOpen();
      for (const group of groups) group.open = open;
    });
    for (const group of groups) group.addEventListener("toggle", label);
  }

  // Copying: the clipboard is out of reach on some pages that were opened as files, so the selection is the other way.
  const copy = async (code) => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      return true;
    } catch {
      const selection = window.getSelection();
      selection.selectAllChildren(code);
      const done = document.execCommand("copy");
      if (done) selection.removeAllRanges();
      return done;
    }
  };
  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const done = await copy(button.parentElement.querySelector("code"));
      button.textContent = done ? "Copied" : "Select it";
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
  }

  // Completeness matrix: one stop for the Tab key, arrows inside.
  const detail = byId("cell-detail");
  for (const grid of document.querySelectorAll(".cells")) {
    const cells = [...grid.children];
    const tell = (cell) => { if (cell.title) detail.textContent = cell.title; };
    const perRow = () => {
      const beyond = cells.findIndex((cell) => cell.offsetTop > cells[0].offsetTop);
      return beyond < 0 ? cells.length : beyond;
    };
    grid.addEventListener("pointerover", (event) => tell(event.target));
    grid.addEventListener("focusin", (event) => {
      tell(event.target);
      for (const cell of cells) cell.tabIndex = cell === event.target ? 0 : -1;
    });
    grid.addEventListener("keydown", (event) => {
      const here = cells.indexOf(document.activeElement);
      const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: perRow(), ArrowUp: -perRow(), Home: -here, End: cells.length - 1 - here };
      const there = cells[here + steps[event.key]];
      if (there) {
        event.preventDefault();
        there.focus();
      }
    });
  }

  // Gallery: the large view takes pictures and numbers from the card, so that each is in the page once.
  const viewer = byId("viewer");
  const body = byId("viewer-body");
  const cards = [...document.querySelectorAll(".card")];
  let shown = -1;
  const show = (index) => {
    shown = (index + cards.length) % cards.length;
    const card = cards[shown];
    byId("viewer-title").textContent = card.querySelector(".open").dataset.sample;
    byId("viewer-place").textContent = `${shown + 1} of ${cards.length}`;
    const pictures = document.createElement("div");
    pictures.className = "large";
    for (const picture of card.querySelectorAll(".picture")) {
      const figure = document.createElement("figure");
      figure.append(picture.firstElementChild.cloneNode(true));
      const caption = document.createElement("figcaption");
      const name = document.createElement("b");
      name.textContent = picture.dataset.name;
      const numbers = document.createElement("span");
      numbers.textContent = `${picture.dataset.window} · up to ${picture.dataset.brightest}`;
      caption.append(name, numbers);
      figure.append(caption);
      pictures.append(figure);
    }
    const numbers = card.querySelector(".numbers").cloneNode(true);
    numbers.hidden = false;
    body.replaceChildren(pictures, numbers);
    body.scrollTop = 0;
  };
  cards.forEach((card, index) => {
    card.querySelector(".open").addEventListener("click", () => {
      show(index);
      viewer.showModal();
      body.focus();
    });
  });
  byId("previous").addEventListener("click", () => show(shown - 1));
  byId("next").addEventListener("click", () => show(shown + 1));
  byId("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: shown + 1, ArrowLeft: shown - 1 };
    if (event.key in steps) {
      event.preventDefault();
      show(steps[event.key]);
    }
  });
  viewer.addEventListener("close", () => { if (shown >= 0) cards[shown].querySelector(".open").focus(); });
})();
