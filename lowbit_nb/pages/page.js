// A page: its theme, its folded code, and its explorers without a kernel. A plain script: it also runs from a folder.
(() => {
  const store = { get(k) { try { return localStorage.getItem(k); } catch { return null; } },
                  set(k, v) { try { localStorage.setItem(k, v); } catch { /* a browser that keeps nothing */ } } };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (store.get("lb-theme") ?? (system.matches ? "dark" : "light")) === "dark";

  function paint() {
    document.documentElement.dataset.theme = dark() ? "dark" : "light";
    document.documentElement.dataset.jpThemeLight = String(!dark());   // what explorers look at
    const button = document.getElementById("theme");
    if (button) button.textContent = dark() ? "Light" : "Dark";
  }

  function foldCode() {
    const button = document.getElementById("fold");
    if (!button) return;
    const fold = (hidden) => {
      document.querySelectorAll("details.code").forEach((d) => { d.open = !hidden; });
      button.textContent = hidden ? "Show code" : "Hide code";
      button.setAttribute("aria-pressed", String(hidden));
    };
    button.addEventListener("click", () => {
      const hidden = button.getAttribute("aria-pressed") !== "true";
      store.set("lb-fold", hidden ? "1" : "0");
      fold(hidden);
    });
    if (store.get("lb-fold") === "1") fold(true);
  }

  // What a kernel's side of a widget is to its module, less the kernel.
  class Model {
    constructor({ state, bytes }) {
      this.state = { ...state };
      for (const [name, code] of Object.entries(bytes)) {
        this.state[name] = new DataView(Uint8Array.from(atob(code), (c) => c.charCodeAt(0)).buffer);
      }
      this.listeners = {};
    }
    get(name) { return this.state[name]; }
    set(name, value) {
      if (this.state[name] === value) return;
      this.state[name] = value;
      [...(this.listeners[`change:${name}`] ?? []), ...(this.listeners.change ?? [])].forEach((f) => f());
    }
    on(event, f) { (this.listeners[event] ??= []).push(f); }
    off(event, f) { this.listeners[event] = f ? (this.listeners[event] ?? []).filter((g) => g !== f) : []; }
    save_changes() {}
    send() {}
  }

  const modules = {};
  function moduleOf(name) {
    return modules[name] ??= (async () => {
      const { esm, css } = window.explorers[name];
      const style = document.createElement("style");
      style.textContent = css;
      document.head.append(style);
      const module = await import(URL.createObjectURL(new Blob([esm], { type: "text/javascript" })));
      return typeof module.default === "function" ? module.default() : module.default;
    })();
  }

  async function bring(box) {
    const data = JSON.parse(box.querySelector("script").textContent);
    const widget = await moduleOf(data.module);
    const model = new Model(data), el = document.createElement("div");
    await widget.initialize?.({ model });
    box.append(el);   // before drawing: some explorers measure their place
    try {
      await widget.render({ model, el });
      box.querySelector(".stored").remove();
    } catch (error) {
      el.remove();    // the stored pictures stay
      throw error;
    }
  }

  paint();
  system.addEventListener("change", paint);
  document.addEventListener("DOMContentLoaded", async () => {
    paint();
    document.getElementById("theme").addEventListener("click", () => { store.set("lb-theme", dark() ? "light" : "dark"); paint(); });
    foldCode();
    if (matchMedia("(max-width: 1060px)").matches) document.querySelectorAll(".sections details").forEach((d) => { d.open = false; });
    for (const script of document.querySelectorAll('.explorer > script[type="application/json"]')) {
      await bring(script.parentElement).catch((error) => console.error(error));
    }
    document.documentElement.dataset.ready = "true";
  });
})();
