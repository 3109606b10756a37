// The console: a statement, its rows, and what may be asked about.

import { api, grid, h, link, problem, put, redraw, statement } from './dom.js';
import { count } from './words.js';

const FIRST = 'SELECT run, pipeline, state, started, seconds FROM sys.runs ORDER BY started DESC LIMIT 20';

export async function sql({ root, pairs, shown, place }) {
  const text = h('textarea', { id: 'statement', rows: 7, spellcheck: 'false', autocapitalize: 'off', value: pairs.get('q') || sessionStorage.getItem('statement') || FIRST });
  const out = h('div', { 'aria-live': 'polite' });
  const go = h('button', { class: 'primary', onclick: () => run() }, 'Run');
  const stop = h('button', { onclick: () => running?.abort(), disabled: true }, 'Stop');
  const save = h('button', { onclick: () => download() }, 'Save as CSV');
  const side = h('aside', { 'aria-label': 'Tables and queries' });
  let running;

  async function during(work) {
    running?.abort();
    const own = running = new AbortController();
    shown.signal.addEventListener('abort', () => own.abort());
    stop.disabled = false;
    try {
      await work(own.signal);
    } catch (error) {
      if (own === running) redraw(out, own.signal.aborted ? h('p', { class: 'soft' }, 'Stopped.') : problem(error));
    } finally {
      if (own === running) stop.disabled = true;
    }
  }

  async function run() {
    sessionStorage.setItem('statement', text.value);
    history.replaceState(null, '', link(['sql'], { q: text.value }));
    await during(async signal => {
      redraw(out, h('p', { class: 'soft' }, 'Running…'));
      const data = await statement({ statement: text.value }, signal);
      const rows = data.grid.rows.length;
      redraw(out, h('p', { class: 'soft', id: 'told-rows' }, data.grid.more ? `the first ${count(rows)} rows` : `${count(rows)} rows`, ` in ${(data.seconds * 1000).toFixed(0)} ms`), grid(data.grid, 'rows'));
    });
  }

  async function download() {
    await during(async signal => {
      const blob = await statement({ statement: text.value, csv: true }, signal);
      const address = URL.createObjectURL(blob);
      h('a', { href: address, download: 'rows.csv' }).click();
      setTimeout(() => URL.revokeObjectURL(address), 10000);
    });
  }

  text.addEventListener('keydown', event => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
  });
  put(root, h('h1', {}, 'SQL'), h('div', { class: 'console' }, h('div', {}, h('label', { for: 'statement' }, 'Statement, which only reads'), text,
    h('p', { class: 'filters' }, go, stop, save, h('span', { class: 'soft' }, 'Ctrl+Enter runs it')), out), side));
  place();
  if (pairs.get('q')) run();
  const data = await shown.ask(api(['tables']));
  const use = (name, value, about) => h('li', {}, h('button', { class: 'plain', title: about, onclick: () => { text.value = value; text.focus(); } }, name));
  const quoted = name => `SELECT * FROM ${name} LIMIT 100`;
  redraw(side, h('details', { open: true }, h('summary', {}, 'Stages of the newest run'), h('ul', {}, data.stages.slice(0, 300).map(name => use(name, quoted(name))))),
    h('details', { open: true }, h('summary', {}, 'What the store knows'), h('ul', {}, data.system.map(one => use(one.name, quoted(one.name), one.about)))),
    h('details', {}, h('summary', {}, 'Queries that come with it'), h('ul', {}, data.queries.map(one => use(one.name, one.text, one.about)))));
}
