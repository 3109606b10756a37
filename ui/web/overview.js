// The overview, a pipeline with the graph of its newest run, and the list of runs.

import { api, facts, h, link, put, redraw, table } from './dom.js';
import { ago, badge, bytes, count, counts, seconds } from './words.js';
import { livingGraph } from './run.js';

const often = running => running ? 1000 : 3000;

const runLink = run => h('a', { href: link(['runs', run.run]), 'data-key': `run ${run.run}`, class: 'mono' }, run.run);

const COLUMNS = [['run', ''], ['pipeline', ''], ['state', ''], ['began', ''], ['took', 'number'], ['stages', ''], ['changed', 'soft']];

function runRow(run) {
  return [runLink(run), h('a', { href: link(['pipelines', run.pipeline]), 'data-key': `of ${run.run}` }, run.pipeline), badge(run.state), ago(run.started),
    seconds(run.seconds), counts(run.counts), [run.pinned ? 'pinned ' : '', run.command.length ? h('span', { class: 'command' }, run.command.join(' ')) : '']];
}

/** How the last runs ended, the oldest first. */
function states(list) {
  const square = one => h('a', { class: `square ${one.state}`, href: link(['runs', one.run]), title: `${one.run}: ${one.state}`, 'aria-label': `${one.run}: ${one.state}` });
  return h('span', { class: 'squares' }, list.slice().reverse().map(square));
}

export async function overview({ root, shown, place }) {
  await shown.watch('/api/overview', data => {
    const row = one => [h('a', { href: link(['pipelines', one.pipeline]), 'data-key': `pipeline ${one.pipeline}` }, one.pipeline), count(one.runs), badge(one.newest.state), ago(one.newest.started),
      seconds(one.newest.seconds), counts(one.newest.counts), states(one.states)];
    const columns = [['pipeline', ''], ['runs', 'number'], ['newest', ''], ['began', ''], ['took', 'number'], ['stages', ''], ['last runs', '']];
    redraw(root, h('h1', {}, 'Overview'),
      facts([['store', h('span', { class: 'mono' }, data.store)], ['runs', h('a', { href: '#/runs' }, count(data.runs))],
        ['artifacts', h('a', { href: '#/artifacts' }, count(data.artifacts))], ['size', bytes(data.bytes)]], 'row'),
      data.running.length ? [h('h2', {}, 'Running now'), table(COLUMNS, data.running.map(runRow), { caption: 'Runs under way' })] : '',
      h('h2', {}, 'Pipelines'),
      data.pipelines.length ? table(columns, data.pipelines.map(row), { caption: 'Pipelines, newest first' })
        : h('p', {}, 'No run yet. ', h('code', {}, 'sluice run PIPELINE'), ' makes one.'),
      data.recent.length ? [h('h2', {}, 'Newest runs'), table(COLUMNS, data.recent.map(runRow), { caption: 'The newest runs' })] : '');
    if (!root.isConnected) place();
  }, data => often(data.running.length));
}

/** A list of runs in which two can be chosen to compare. */
function chooser(rows, chosen) {
  const box = run => h('input', { type: 'checkbox', 'aria-label': `choose ${run.run}`, 'data-key': `choose ${run.run}`, checked: chosen.has(run.run),
    onchange: event => {
      if (event.target.checked) chosen.add(run.run); else chosen.delete(run.run);
      button();
    } });
  const go = h('a', { class: 'button', 'data-key': 'compare' }, 'Compare two runs');
  const button = () => {
    // Names of runs begin with their time.
    const [old, later] = [...chosen].sort();
    const ready = chosen.size === 2;
    go.textContent = ready ? 'Compare the two' : `Choose two to compare (${chosen.size})`;
    if (ready) go.setAttribute('href', link(['compare'], { old, new: later })); else go.removeAttribute('href');
  };
  button();
  return [table([['', 'choose'], ...COLUMNS], rows.map(run => [box(run), ...runRow(run)]), { caption: 'Runs, newest first' }), h('p', {}, go)];
}

function pager(data, address) {
  if (data.pages < 2) return '';
  const step = (page, word) => page >= 0 && page < data.pages ? h('a', { class: 'button', href: address(page), 'data-key': word }, word) : '';
  return h('nav', { class: 'pager', 'aria-label': 'Pages of the list' }, step(data.page - 1, 'Newer'), ` page ${data.page + 1} of ${data.pages} `, step(data.page + 1, 'Older'));
}

export async function pipeline({ root, named: [name], shown, place }) {
  const list = h('div');
  const live = h('section');
  const chosen = new Set();
  put(root, h('h1', {}, name), live, h('h2', {}, 'Runs'), list);
  let newest;
  await shown.watch(api(['runs'], { pipeline: name }), data => {
    if (!data.runs.length) return shown.fail(new Error(`There is no run of a pipeline "${name}".`));
    if (data.runs[0].run !== newest) {
      newest = data.runs[0].run;
      const box = h('div');
      redraw(live, h('h2', {}, 'Newest run ', h('a', { href: link(['runs', newest]), class: 'mono' }, newest)), box,
        h('p', {}, h('a', { href: link(['runs', newest, 'curves']) }, 'Curves'), ' · ', h('a', { href: link(['runs', newest, 'log']) }, 'Log'), ' · ',
          h('a', { href: link(['curves'], { pipeline: name }) }, 'Curves of all runs')));
      shown.beside(livingGraph(box, newest, shown));
    }
    redraw(list, chooser(data.runs, chosen), data.pages > 1 ? h('p', {}, h('a', { href: link(['runs'], { pipeline: name, page: 1 }) }, `${count(data.total)} runs in all`)) : '');
    if (!root.isConnected) place();
  }, data => often(data.runs[0]?.state === 'running'));
}

export async function runs({ root, pairs, shown, place }) {
  const asked = { pipeline: pairs.get('pipeline'), state: pairs.get('state'), page: pairs.get('page') };
  const chosen = new Set();
  const select = (name, values) => h('label', {}, name, h('select', { 'data-key': name, onchange: event => {
    location.hash = link(['runs'], { ...asked, page: undefined, [name]: event.target.value });
  } }, h('option', { value: '' }, 'all'), values.map(value => h('option', { value, selected: value === asked[name] }, value))));
  await shown.watch(api(['runs'], asked), data => {
    redraw(root, h('h1', {}, 'Runs'), h('div', { class: 'filters' }, select('pipeline', data.pipelines),
      select('state', ['running', 'done', 'failed', 'interrupted', 'killed']), h('span', { class: 'soft' }, `${count(data.total)} runs`)),
    chooser(data.runs, chosen), pager(data, page => link(['runs'], { ...asked, page })));
    if (!root.isConnected) place();
  }, data => often(data.runs.some(run => run.state === 'running')));
}
