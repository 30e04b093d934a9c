"use strict";
// The dashboard reads without this file. It adds: live parts, the theme, values at the pointer.
(() => {
  const root = document.documentElement;
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;

  addEventListener("DOMContentLoaded", () => {
    themes();
    pointer();
    escape();
    if (document.getElementById("live")) live();
  });

  function themes() {
    const button = document.getElementById("theme");
    if (!button) return;
    const isDark = () => root.dataset.theme
      ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    const name = () => { button.textContent = isDark() ? "Light" : "Dark"; };
    button.hidden = false;
    name();
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      localStorage.setItem("theme", root.dataset.theme);
      name();
    });
  }

  // An open question closes with Escape, and with a click elsewhere.
  function escape() {
    const close = (but) => document.querySelectorAll("details.confirm[open]").forEach((it) => {
      if (it !== but) it.open = false;
    });
    addEventListener("keydown", (event) => { if (event.key === "Escape") close(null); });
    addEventListener("click", (event) => close(event.target.closest("details.confirm")));
  }

  // Parts that changed are replaced; what somebody types into or has open stays.
  function live() {
    const place = location.href;
    const offline = document.getElementById("offline");
    let wanted = false, running = false, since = document.querySelector(".live-text").textContent;

    const setOffline = (is) => {
      offline.hidden = !is;
      document.body.classList.toggle("is-offline", is);
      document.getElementById("offline-since").textContent = since;
    };

    const isBusy = (part) => part.querySelector("details[open]") !== null ||
      (part.contains(document.activeElement) && document.activeElement.matches("input, select, button"));

    const swap = (text) => {
      const page = new DOMParser().parseFromString(text, "text/html");
      for (const part of document.querySelectorAll("[data-live]")) {
        const next = page.getElementById(part.id);
        if (!next || next.innerHTML === part.innerHTML || isBusy(part)) continue;
        const focused = part.contains(document.activeElement) && part !== document.activeElement
          ? document.activeElement.getAttribute("href") : null;
        const left = part.scrollLeft;
        part.replaceChildren(...document.adoptNode(next).childNodes);
        part.scrollLeft = left;
        if (focused) part.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus();
      }
      since = page.querySelector(".live-text")?.textContent ?? since;
    };

    const refresh = async () => {
      wanted = true;
      if (running || document.hidden) return;
      running = true;
      while (wanted) {
        wanted = false;
        try {
          const answer = await fetch(place, { headers: { accept: "text/html" } });
          if (answer.redirected) { location.reload(); return; }
          if (!answer.ok) throw new Error(String(answer.status));
          swap(await answer.text());
          setOffline(false);
        } catch { setOffline(true); }
      }
      running = false;
    };

    const source = () => {
      const events = new EventSource("/events");
      let first = true;
      events.addEventListener("change", () => {
        setOffline(false);
        if (!first) refresh();
        first = false;
      });
      events.addEventListener("error", () => {
        setOffline(true);
        if (events.readyState !== EventSource.CLOSED) return;
        // The server refused: the session is over, or the pool is starting.
        events.close();
        setTimeout(() => { refresh(); source(); }, 3000);
      });
      addEventListener("pagehide", () => events.close());
    };
    source();
    document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  }

  // The legend shows the values at the pointer, or at the place that the arrow keys choose.
  function pointer() {
    const read = (figure, part) => {
      for (const value of figure.querySelectorAll("[data-values]")) {
        value.dataset.now ??= value.textContent;
        if (part === null) { value.textContent = value.dataset.now; continue; }
        const values = value.dataset.values.split(";");
        let index = Math.min(values.length - 1, Math.max(0, Math.floor(part * values.length)));
        while (values[index] === "=") index -= 1;
        value.textContent = values[index] || "–";
      }
      let cursor = figure.querySelector(".at");
      if (!cursor) {
        cursor = document.createElement("span");
        cursor.className = "at";
        figure.querySelector(".plot").append(cursor);
      }
      cursor.hidden = part === null;
      if (part === null) return;
      const svg = figure.querySelector("svg");
      cursor.style.left = `${svg.offsetLeft + svg.getBoundingClientRect().width * part}px`;
      const first = figure.querySelector("[data-values]").dataset.values.split(";").length;
      const at = new Date(Number(figure.dataset.start) + Math.floor(part * first) * Number(figure.dataset.step));
      cursor.textContent = at.toISOString().slice(5, 16).replace("T", " ");
      cursor.classList.toggle("left", part > 0.7);
    };
    addEventListener("pointermove", (event) => {
      const svg = event.target.closest?.(".plot svg");
      for (const figure of document.querySelectorAll("figure.chart")) {
        if (svg && figure.contains(svg)) {
          const box = svg.getBoundingClientRect();
          read(figure, (event.clientX - box.left) / box.width);
        } else if (figure.querySelector(".at:not([hidden])")) {
          read(figure, null);
        }
      }
    });
  }
})();
