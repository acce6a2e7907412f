// Marks in the contents where the reader is, and says what scrolls sideways.
(() => {
  "use strict";
  const nav = document.querySelector("nav");
  const details = nav.querySelector("details");
  const links = new Map([...nav.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
  const places = [...links.keys()].map((name) => document.getElementById(name)).filter(Boolean);
  const narrow = matchMedia("(max-width: 74.99rem)");

  // Beside the text the contents stay open; above it they fold into one line, which says where one is.
  const fold = () => { details.open = !narrow.matches; };
  nav.classList.add("follows");
  narrow.addEventListener("change", fold);
  fold();
  nav.addEventListener("click", (event) => { if (event.target.closest("a") && narrow.matches) details.open = false; });
  nav.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && narrow.matches) { details.open = false; nav.querySelector("summary").focus(); }
  });

  // One is at the last place that has passed the upper quarter of the window.
  const mark = () => {
    const passed = places.filter((place) => place.getBoundingClientRect().top < innerHeight / 4);
    const here = (passed.at(-1) ?? places[0]).id;
    if (links.get(here).hasAttribute("aria-current")) return;
    for (const link of links.values()) {
      link.removeAttribute("aria-current");
      link.closest("nav > details > ol > li").classList.remove("here");
    }
    const link = links.get(here), part = link.closest("nav > details > ol > li");
    link.setAttribute("aria-current", "location");
    part.classList.add("here");
    nav.querySelector("summary .here").textContent = `: ${part.querySelector("a").textContent}`;
    if (!narrow.matches) {
      const box = nav.getBoundingClientRect(), at = link.getBoundingClientRect();
      if (at.top < box.top || at.bottom > box.bottom) nav.scrollTop += at.top - box.top - box.height / 3;
    }
  };
  const observer = new IntersectionObserver(mark, { rootMargin: "0px 0px -75% 0px", threshold: [0, 1] });
  places.forEach((place) => observer.observe(place));
  mark();

  // What is wider than its frame can be reached by keyboard, has a name, and a hint.
  const frames = document.querySelectorAll(".table, figure, pre, .found");
  // First columns stay in view, one behind the other; only the last of them where all would take half of the frame.
  const stick = (frame) => {
    const rows = [...frame.querySelectorAll("tr")].map((row) => [...row.querySelectorAll(".first")]);
    const heads = rows.reduce((most, row) => (row.length > most.length ? row : most), []);
    const ends = [0];
    for (const head of heads) ends.push(ends.at(-1) + head.offsetWidth);
    const all = ends.at(-1) <= frame.clientWidth / 2;
    for (const cell of rows.flat()) {
      const column = Number(cell.dataset.column);
      cell.classList.toggle("loose", !all && column < heads.length - 1);
      cell.style.left = all ? `${ends[column]}px` : 0;
    }
  };
  const hint = (frame) => {
    const wide = frame.scrollWidth > frame.clientWidth + 1;
    frame.classList.toggle("scrolls", wide);
    stick(frame);
    if (wide) {
      frame.tabIndex = 0;
      frame.setAttribute("role", "group");
      frame.setAttribute("aria-label", frame.querySelector("caption, figcaption")?.textContent || "Scrolls sideways");
    } else {
      ["tabindex", "role", "aria-label"].forEach((name) => frame.removeAttribute(name));
    }
  };
  const sizes = new ResizeObserver((entries) => entries.forEach((entry) => hint(entry.target)));
  frames.forEach((frame) => sizes.observe(frame));
})();
