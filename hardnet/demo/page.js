// The demo page: turn drops, pastes, clicks and choices into orders for the server. Runs once, in the drop field.
const language = navigator.language.toLowerCase().startsWith("ko") ? "ko" : "en";
document.documentElement.lang = language;
let current = null; // what is classified: {example: its name} or {files: [File], opened: from a table}
let table = null; // what a picture was opened from: {files, preview, card: its element}

const choice = () => document.querySelector("#choice");

function tellAbout() {
  document.querySelector("#about").textContent = choice().selectedOptions[0].dataset.about;
}

async function submit(next) {
  current = next;
  const order = { language, choice: choice().value, example: current.example || "", opened: !!current.opened, files: [] };
  const files = current.files || [];
  for (const [index, file] of files.entries()) {
    props.status = `${props.uploading[language]} ${index + 1} / ${files.length}`;
    if (file.size > props.limit) {
      order.files.push(["", file.name, "large"]);
      continue;
    }
    try {
      // Under a random name: equal files of two visitors must not share a path, as each is deleted when it was read.
      const suffix = file.name.match(/\.\w{1,5}$/) || "";
      const stored = await upload(new File([file], Math.random().toString(36).slice(2) + suffix));
      order.files.push([stored.path, file.name, ""]);
    } catch {
      order.files.push(["", file.name, "refused"]);
    }
    if (current !== next) return;
  }
  props.value = order;
  trigger("submit");
  if (element.getBoundingClientRect().top < 0) element.scrollIntoView();
}

element.addEventListener("change", (event) => {
  const files = [...event.target.files].slice(0, props.most);
  event.target.value = ""; // so that choosing the same file again is a change
  if (files.length) submit({ files });
});
for (const kind of ["dragover", "dragleave", "drop"])
  element.addEventListener(kind, () => element.classList.toggle("over", kind === "dragover"));

document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) submit({ files });
});

document.addEventListener("change", (event) => {
  if (event.target !== choice()) return;
  tellAbout();
  if (current) submit(current.opened ? { files: table.files } : current);
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-example], [data-choose], [data-again], [data-open], [data-back]");
  if (!button) return;
  const { example, choose, open, again, back } = button.dataset;
  if (example) submit({ example });
  else if (choose) {
    choice().value = choose;
    choice().dispatchEvent(new Event("change", { bubbles: true }));
  } else if (open) {
    table = { files: current.files, preview: props.preview, card: button.closest(".card").cloneNode(true), open };
    submit({ files: [table.files[open]], opened: true });
  } else if (back !== undefined) {
    current = { files: table.files };
    props.preview = table.preview;
    button.closest(".card").replaceWith(table.card);
    document.querySelector(`[data-open="${table.open}"]`).focus();
  } else if (current) submit(current);
});

(function wait() {
  choice() ? tellAbout() : setTimeout(wait, 50);
})();
