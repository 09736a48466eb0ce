'use strict';

const chosen = new Map();  // place of a photograph -> its file
const key = document.getElementById('key');
let server = { threshold: null, bytes: Infinity };
let retry = () => {};  // once a key is given

const LOWEST = -0.25;  // of the scale: cosines of two identities lie around 0
const place = (value, lowest = 0) => `${100 * Math.min(1, Math.max(0, (value - lowest) / (1 - lowest)))}%`;
const shown = value => value.toFixed(2).replace('-', '−');

/** An element: el('p.quiet', 'text', child, ..). */
function el(what, ...children) {
  const [tag, ...classes] = what.split('.');
  const made = document.createElement(tag);
  made.className = classes.join(' ');
  made.append(...children);
  return made;
}

/** What the server answers; an error in words is thrown. */
async function ask(path, files) {
  if (files.reduce((sum, file) => sum + file.size, 0) > server.bytes) {
    throw new Error(`More than ${server.bytes / 1e6} MB: choose smaller photographs.`);
  }
  const body = new FormData();
  files.forEach(file => body.append('images', file));
  const headers = key.value ? { Authorization: `Bearer ${key.value}` } : {};
  const reply = await fetch(path, { method: 'POST', body, headers })
    .catch(() => { throw new Error('The server does not answer. Is it still running?'); });
  if (reply.status === 401) {
    key.form.hidden = false;
    key.focus();
    throw new Error(key.value ? 'The server does not know this key.' : 'The server asks for a key: give it above.');
  }
  const answer = await reply.json().catch(() => ({ error: `the server answered ${reply.status}` }));
  if (!reply.ok) throw new Error(answer.error[0].toUpperCase() + answer.error.slice(1) + '.');
  return answer;
}

/** Shows in a section what comes of its photographs, unless others have been chosen by then. */
async function show(section, path, draw) {
  const files = () => [...section.querySelectorAll('.photo')].map(photo => chosen.get(photo));
  const asked = files();
  if (asked.includes(undefined)) return;
  const result = section.querySelector('.result');
  result.replaceChildren(el('p.quiet', 'Looking …'));
  retry = () => show(section, path, draw);
  const parts = await ask(path, asked).then(draw, error => [el('p.error', error.message)]);
  if (files().every((file, n) => file === asked[n])) result.replaceChildren(...parts);
}

function verdict(kind, sign, text, detail) {
  const mark = el('span.sign', sign);
  mark.ariaHidden = 'true';
  return [el(`p.verdict.${kind}`, mark, text), el('p.quiet', detail)];
}

function compared({ cosine, threshold, same }) {
  const known = threshold !== null;
  const marks = known ? [el('i.mark'), el('span.mark-name', `threshold ${shown(threshold)}`)] : [];
  const scale = el('div.scale', el('div.zones', ...(known ? [el('i.left'), el('i.right')] : [])), ...marks, el('i.needle'),
    el('span.value', shown(cosine)), el('div.ends', el('span', 'different'), el('span', 'same')));
  scale.style.setProperty('--at', place(cosine, LOWEST));
  scale.style.setProperty('--threshold', place(threshold, LOWEST));
  scale.role = 'img';
  scale.ariaLabel = `Similarity ${shown(cosine)}` + (known ? `, threshold ${shown(threshold)}` : '');
  if (!known) return [...verdict('', '?', `Similarity ${shown(cosine)}`, 'There is no threshold to judge it by.'), scale];
  const detail = `The similarity, ${shown(cosine)}, ${same ? 'reaches' : 'is below'} the threshold, ${shown(threshold)}.`;
  return [...verdict(...(same ? ['same', '=', 'Same'] : ['different', '≠', 'Different']), detail), scale];
}

function found({ measure, threshold, images: [{ identity, nearest }] }) {
  const known = threshold !== null;
  const score = value => measure === 'cosine' ? shown(value) : `${(100 * value).toFixed(1)} %`;
  const rows = nearest.map(guess => {
    const below = known && guess.score < threshold;
    const bar = el('span.bar', el('i'), ...(known ? [el('i.mark')] : []));
    bar.style.setProperty('--at', place(guess.score));
    bar.style.setProperty('--threshold', place(threshold));
    return el(below ? 'li.below' : 'li', el('span', guess.name),
      el('span', score(guess.score) + (below ? ', below' : '')), bar);
  });
  const judged = known ? `, threshold ${shown(threshold)}` : '';
  const told = identity === null ? verdict('different', '?', 'Unknown', `Nobody here reaches the threshold${judged.slice(11)}.`)
    : verdict('same', '=', identity, `${measure === 'cosine' ? 'Similarity' : 'Probability'} ${score(nearest[0].score)}${judged}.`);
  return [...told, el('ol.nearest', ...rows)];
}

function choose(photo, file) {
  if (!file) return;
  const image = photo.querySelector('img');
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  image.hidden = false;
  photo.querySelector('.drop').classList.add('filled');
  photo.querySelector('.how').textContent = file.name;
  chosen.set(photo, file);
  const section = photo.closest('section');
  if (section.id === 'compare') show(section, 'compare', compared);
  else show(section, server.gallery ? 'search' : 'classify', found);
}

for (const photo of document.querySelectorAll('.photo')) {
  photo.append(document.querySelector('template').content.cloneNode(true));
  photo.querySelector('strong').textContent = photo.dataset.name;
  photo.addEventListener('change', event => choose(photo, event.target.files[0]));
  const drop = photo.querySelector('.drop');
  drop.addEventListener('dragover', () => drop.classList.add('over'));
  drop.addEventListener('dragleave', () => drop.classList.remove('over'));
  drop.addEventListener('drop', event => {
    drop.classList.remove('over');
    choose(photo, event.dataTransfer.files[0]);
  });
}
// A photograph that is dropped beside its place would take that of the page.
for (const name of ['dragover', 'drop']) document.addEventListener(name, event => event.preventDefault());
key.form.addEventListener('submit', event => {
  event.preventDefault();
  retry();
});

const about = document.getElementById('about');
fetch('health').then(reply => reply.json()).then(told => {
  server = told;
  about.textContent = `${told.recipe}, ${told.threshold === null ? 'no threshold' : `threshold ${shown(told.threshold)}`}`;
  key.form.hidden = !told.key;
  if (!told.gallery && told.measure !== 'cosine') document.getElementById('find-title').textContent = 'What is it?';
}).catch(() => { about.textContent = 'The server does not answer.'; });
