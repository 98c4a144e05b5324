// What Gradio's own components lack for keyboards and screen readers, added as they appear.
(() => {
  const lacking = [
    [".empty[aria-label]:not([role])", (e) => e.setAttribute("role", "note")],
    ["pre:not([tabindex]), .virtual-table-viewport th:first-child:not([tabindex='0'])",
      (e) => { e.tabIndex = 0; }],
    [".image-container button:not([aria-label])", (e) => e.setAttribute("aria-label", "Picture")],
  ];
  const mend = () => lacking.forEach(([what, add]) => document.querySelectorAll(what).forEach(add));
  new MutationObserver(mend).observe(document, { childList: true, subtree: true });
})();
