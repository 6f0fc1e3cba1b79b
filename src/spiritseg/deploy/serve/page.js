// The page's own part: it asks the endpoint, and blends what comes back in the browser, so that
// opacity, students and frames change without another upload. Gradio calls what it needs.
window.spiritseg = (() => {
  const THE_IMAGE = "the image itself";
  let given = null; // the last answer of /api/compare
  let students = [];
  let blank = null;

  const escape = (text) => {
    const element = document.createElement("span");
    element.textContent = text;
    return element.innerHTML.replaceAll('"', "&quot;");
  };
  const picture = (url) =>
    new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => resolve(image);
      image.onerror = () => reject(new Error("a picture of the answer cannot be shown"));
      image.src = url;
    });

  async function blended(frame, name, opacity) {
    const image = await picture(frame.image);
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    if (frame.masks[name]) {
      context.globalAlpha = opacity;
      context.drawImage(await picture(frame.masks[name]), 0, 0);
    }
    return canvas.toDataURL("image/jpeg", 0.92);
  }
  const shown = (url, name) => ({ path: name + ".jpg", url, orig_name: name + ".jpg" });

  async function drawn(number, opacity, left, right) {
    const frame = given && given.frames[Math.min(number, given.frames.length) - 1];
    if (!frame) return blank;
    const urls = await Promise.all([left, right].map((name) => blended(frame, name, opacity)));
    return [shown(urls[0], left), shown(urls[1], right)];
  }

  function table(number) {
    const frame = given && given.frames[Math.min(number, given.frames.length) - 1];
    const rows = new Map(); // of a class: its colour
    for (const { classes, colours } of students)
      classes.forEach((name, k) => rows.has(name) || rows.set(name, colours[k].join(" ")));
    const heads = students.map(({ name }) => `<th scope="col">${escape(name)}</th>`);
    const cells = (text) => students.map((one) => `<td>${text(one)}</td>`).join("");
    const share = (name) => (one) => {
      if (!one.classes.includes(name)) return "not known";
      return frame ? (100 * frame.area[one.name][name]).toFixed(1) + " %" : "–";
    };
    const latency = ({ name }) => (given ? given.latency_ms[name].toFixed(1) + " ms" : "–");
    const line = ([name, colour]) =>
      `<tr><th scope="row"><i style="background:rgb(${colour})"></i>${escape(name)}</th>` +
      `${cells(share(name))}</tr>`;
    return (
      `<div class="wide"><table><thead><tr><th scope="col" class="first">area</th>${heads.join("")}</tr></thead>` +
      `<tbody>${[...rows].map(line).join("")}</tbody>` +
      `<tfoot><tr><th scope="row">latency</th>${cells(latency)}</tr></tfoot></table></div>`
    );
  }

  async function ask(file) {
    const form = new FormData();
    form.append("file", file);
    const response = await fetch("api/compare", { method: "POST", body: form });
    const answer = await response.json().catch(() => ({ error: `HTTP ${response.status}` }));
    if (!response.ok) throw new Error(answer.error);
    return answer;
  }

  const update = (values) => ({ __type__: "update", ...values });

  return {
    THE_IMAGE,
    drawn,
    table,
    async start() {
      students = (await (await fetch("api/students")).json()).students;
      return table(1);
    },
    wait() {
      const file = document.querySelector("#drop input").files[0];
      return file ? `Segmenting ${escape(file.name)} …` : "";
    },
    async upload(opacity, left, right) {
      const input = document.querySelector("#drop input");
      const file = input.files[0];
      if (!file) return [update({}), update({}), update({}), update({}), update({})];
      let said;
      try {
        given = await ask(file);
        const [height, width] = given.size;
        const count = given.frames.length;
        const kind = count > 1 ? `, ${count} frames segmented` : "";
        said = `${escape(file.name)}: ${width} × ${height}${kind}`;
      } catch (error) {
        given = null;
        said = `<span role="alert">${escape(file.name)}: ${escape(error.message)}</span>`;
      }
      input.value = ""; // the same file may be dropped again
      const count = given ? given.frames.length : 1;
      const frames = update({ value: 1, maximum: Math.max(count, 2), visible: count > 1 });
      const play = update({ visible: count > 1, value: "Play" });
      return [said, await drawn(1, opacity, left, right), table(1), frames, play];
    },
    async show(number, opacity, left, right) {
      return [await drawn(number, opacity, left, right), table(number)];
    },
    next(number) {
      return given ? (number % given.frames.length) + 1 : 1;
    },
  };
})();
