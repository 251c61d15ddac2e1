// A page that is opened from a folder may start no worker; the search then works in a hidden frame of the page.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(script) {
      super();
      const frame = document.body.appendChild(document.createElement("iframe"));
      frame.hidden = true;
      this.inside = frame.contentWindow;
      this.loaded = new Promise(resolve => { frame.onload = resolve; });
      this.inside.answer = data => this.dispatchEvent(new MessageEvent("message", {data}));
      this.inside.document.write(`<body><script>postMessage = answer</script><script src="${script}"></script></body>`);
      this.inside.document.close();
    }
    postMessage(data) {
      this.loaded.then(() => this.inside.dispatchEvent(new MessageEvent("message", {data})));
    }
    terminate() {}
  };
  window.Worker = window.IFrameWorker;
}
