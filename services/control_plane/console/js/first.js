// Before anything is drawn: the theme that was chosen, else the system's. Not a module, so that it blocks.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("cryoflux-theme");
  } catch {
    // storage is off: the system's theme it is
  }
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = chosen ?? (dark ? "dark" : "light");
})();
