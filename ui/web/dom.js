// Elements and requests. Text goes in as text: nothing here reads HTML, so no name or value can become any.

const SVG = 'http://www.w3.org/2000/svg';

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'value' || name === 'checked' || name === 'selected') node[name] = value;
    else node.setAttribute(name, value === true ? '' : String(value));
  }
  add(node, children);
  return node;
}

function add(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** An element of HTML. */
export const h = (tag, properties, ...children) => filled(document.createElement(tag), properties, children);

/** An element of SVG. */
export const s = (tag, properties, ...children) => filled(document.createElementNS(SVG, tag), properties, children);

/** Adds children to a node. */
export const put = (node, ...children) => add(node, children);

/** Puts other children into a node; what had the focus has it again if it is still there, by its `data-key`. */
export function redraw(node, ...children) {
  const key = node.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const scrolled = [...node.querySelectorAll('[data-scroll]')].map(box => [box.dataset.scroll, box.scrollLeft, box.scrollTop]);
  node.replaceChildren();
  add(node, children);
  for (const [name, left, top] of scrolled) {
    const box = [...node.querySelectorAll('[data-scroll]')].find(box => box.dataset.scroll === name);
    if (box) { box.scrollLeft = left; box.scrollTop = top; }
  }
  if (key) [...node.querySelectorAll('[data-key]')].find(other => other.dataset.key === key)?.focus({ preventScroll: true });
}

/** An error that the server told. */
export class Failure extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.error = error;
  }
}

const known = new Map();

async function failure(response) {
  const body = await response.json().catch(() => ({}));
  return new Failure(response.status, body.error || { code: 'failed', message: `the server said ${response.status}` });
}

/** What the server answers; the very same object as long as nothing changed. */
export async function ask(path, signal) {
  const before = known.get(path);
  const headers = before ? { 'if-none-match': before.tag } : {};
  const response = await fetch(path, { headers, signal, cache: 'no-store' });
  if (response.status === 304) return before.data;
  if (!response.ok) throw await failure(response);
  const data = await response.json();
  if (known.size > 200) known.clear();
  known.set(path, { tag: response.headers.get('etag'), data });
  return data;
}

/** Runs a statement. */
export async function statement(body, signal) {
  const headers = { 'content-type': 'application/json' };
  const response = await fetch('/api/sql', { method: 'POST', headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw await failure(response);
  return body.csv ? response.blob() : response.json();
}

/** A path of the server with names and pairs put in. */
export function api(parts, pairs) {
  const path = '/api/' + parts.map(encodeURIComponent).join('/');
  return path + query(pairs);
}

/** An address of this page. */
export function link(parts, pairs) {
  return '#/' + parts.map(encodeURIComponent).join('/') + query(pairs);
}

function query(pairs) {
  const said = Object.entries(pairs || {}).filter(([, value]) => value !== undefined && value !== null && value !== '');
  return said.length ? '?' + new URLSearchParams(said) : '';
}

/** An error as a box. */
export function problem(error) {
  if (error instanceof Failure) {
    const { message, hint, detail, text, code, place } = error.error;
    return h('div', { class: 'problem', role: 'alert' },
      h('p', {}, h('b', {}, message), ' ', h('span', { class: 'soft' }, code)),
      place && place.text ? h('pre', {}, text) : (detail || []).map(line => h('p', {}, line)),
      hint && h('p', {}, h('b', {}, 'hint: '), hint));
  }
  return h('div', { class: 'problem', role: 'alert' }, h('p', {}, String(error.message || error)));
}

/** A table: columns are [title, class], rows are lists of cells; names of columns stand before cells on narrow screens. */
export function table(columns, rows, options) {
  const { caption, key, cards = true } = options || {};
  const heads = columns.map(([title, kind]) => h('th', { scope: 'col', class: kind }, title));
  const cell = (content, column) => h('td', { class: columns[column][1], 'data-name': columns[column][0] }, content);
  const row = (cells, index) => h('tr', { class: cells.state, 'data-row': key && key(index) }, cells.map(cell));
  return h('div', { class: 'scroll', 'data-scroll': caption, tabindex: cards ? undefined : 0 },
    h('table', { class: cards ? 'cards' : '' }, caption && h('caption', {}, caption), h('thead', {}, h('tr', {}, heads)),
      h('tbody', {}, rows.map(row))));
}

/** The first rows of something, as the server sends them. */
export function grid(data, caption) {
  const columns = data.columns.map(column => [h('span', { title: column.kind }, column.name), column.numeric ? 'number' : '']);
  const shown = (cell, column) => {
    if (cell === null) return h('span', { class: 'null' }, 'null');
    // Six decimals are enough to read; all of them are there where the pointer rests.
    return data.columns[column].numeric && /\.\d{7,}$/.test(cell) ? h('span', { title: cell }, Number(cell).toFixed(6)) : cell;
  };
  const cells = data.rows.map(row => row.map(shown));
  const heads = columns.map(([title, kind]) => h('th', { scope: 'col', class: kind }, title));
  const row = cells => h('tr', {}, cells.map((content, column) => h('td', { class: columns[column][1] }, content)));
  return h('div', { class: 'scroll grid', tabindex: 0, role: 'region', 'aria-label': caption },
    h('table', {}, h('thead', {}, h('tr', {}, heads)), h('tbody', {}, cells.map(row))));
}

/** Names and values beneath each other; what is empty is left out. */
export function facts(pairs, kind) {
  const said = pairs.filter(([, value]) => value !== undefined && value !== null && value !== '');
  return h('dl', { class: kind ? `facts ${kind}` : 'facts' }, said.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))));
}
