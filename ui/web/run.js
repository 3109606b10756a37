// A run: its graph with live states, its stages, curves, tables, log and pipeline; and one stage of it.

import { api, ask, facts, grid, h, link, problem, put, redraw, table } from './dom.js';
import { ago, badge, bytes, count, counts, figure, seconds, short, tone, when } from './words.js';
import { drawing } from './graph.js';
import { runCurves } from './curves.js';

const MOST = 300;

/** How far a stage is, in words and as a fraction. */
function far(stage) {
  const { done, total, unit, figures } = stage.progress;
  const told = figures.slice(0, 2).map(([name, value]) => `, ${name} ${figure(value)}`).join('');
  return { words: `${count(done)}${total ? ` of ${count(total)}` : ''} ${unit}${told}`, fraction: total ? done / total : 0 };
}

/** What a stage is in a run that may have ended. */
const state = (stage, run) => run.state !== 'running' && ['running', 'waiting'].includes(stage.outcome) ? 'stopped' : stage.outcome;

/** States of the nodes of the graph: those of all instances together. */
function states(run, nodes) {
  const groups = new Map();
  for (const stage of run.stages) groups.set(stage.base, [...(groups.get(stage.base) || []), stage]);
  return nodes.map(node => {
    const stages = groups.get(node.stage) || [];
    const tests = node.tests.flatMap(test => groups.get(test) || []);
    const all = stages.map(stage => state(stage, run));
    const worst = ['failed', 'differs', 'running', 'stopped', 'waiting', 'blocked', 'ran', 'agrees', 'reused', 'left_out'].find(one => all.includes(one)) || 'waiting';
    const number = one => all.filter(other => other === one).length;
    const several = [...new Set(all)].map(one => `${number(one)} ${one.replace('_', ' ')}`).join(', ');
    const [only] = stages;
    let line = all.length > 1 ? several : worst.replace('_', ' ');
    let fraction = all.length > 1 && worst === 'running' ? 1 - (number('running') + number('waiting')) / all.length : 0;
    if (all.length === 1) {
      if (only.progress) ({ words: line, fraction } = far(only));
      else if (only.outcome === 'ran') line = `ran in ${seconds(only.seconds)}`;
    }
    const failed = tests.filter(test => test.outcome === 'failed').length;
    if (failed) line += `; ${failed} of ${tests.length} tests failed`;
    const about = [node.stage, node.operator, line, only && all.length === 1 && only.because, tests.length && `${tests.length} tests`];
    return [node.stage, { tone: failed ? 'bad' : tone(worst), line, fraction, title: about.filter(word => word).join('\n') }];
  });
}

/** The graph of a run, kept up to date in a box. */
export async function livingGraph(box, name, shown, hear) {
  const graph = await shown.ask(api(['runs', name, 'graph']));
  let run;
  const href = node => {
    const own = run?.stages.filter(stage => stage.base === node.stage) || [];
    return own.length === 1 ? link(['runs', name, 'stage', own[0].stage]) : link(['runs', name, 'stages'], { filter: `${node.stage}[` });
  };
  let drawn;
  await shown.watch(api(['runs', name]), data => {
    run = data;
    if (!drawn) {
      drawn = drawing(graph.nodes, href);
      redraw(box, graph.nodes.length ? h('div', { class: 'graph', tabindex: 0, role: 'region', 'aria-label': 'graph of stages, may scroll' }, drawn.picture) : '',
        h('ul', { class: 'key-row', 'aria-label': 'colours' }, [['idle', 'waiting'], ['running', 'running'], ['ran', 'ran'], ['good', 'reused'], ['bad', 'failed']].map(([kind, word]) => h('li', {}, h('span', { class: `patch ${kind}` }), word))));
      const around = box.querySelector('.graph');
      if (around) requestAnimationFrame(() => { around.scrollLeft = (around.scrollWidth - around.clientWidth) / 2; });
    }
    drawn.set(states(data, graph.nodes));
    hear?.(data);
  }, data => data.state === 'running' ? 700 : 4000);
}

const TABS = [['', 'Stages'], ['curves', 'Curves'], ['tables', 'Tables'], ['log', 'Log'], ['source', 'Pipeline']];

export async function run({ root, named: [name, tab], pairs, shown, place }) {
  const current = tab === 'stages' || !tab ? '' : tab;
  const head = h('div');
  const body = h('section');
  const tabs = TABS.map(([key, title]) => h('a', { href: link(['runs', name, ...(key ? [key] : [])]), 'aria-current': key === current ? 'page' : undefined }, title));
  put(root, head, h('nav', { class: 'tabs', 'aria-label': 'Parts of the run' }, tabs), body);
  const top = data => {
    const done = data.stages.filter(stage => !['waiting', 'running'].includes(stage.outcome)).length;
    redraw(head, h('h1', {}, h('span', { class: 'mono' }, data.run), ' ', badge(data.state)),
      facts([['pipeline', h('a', { href: link(['pipelines', data.pipeline]), 'data-key': 'pipeline' }, data.pipeline)], ['began', [when(data.started), ' UTC, ', ago(data.started)]], ['took', seconds(data.seconds)],
        ['stages', counts(data.counts)], ['seed', data.seed], ['host', data.host]], 'row'),
      data.command.length ? h('p', { class: 'command mono' }, data.command.join(' ')) : '',
      data.state === 'running' ? h('progress', { max: data.stages.length, value: done, 'aria-label': `${done} of ${data.stages.length} stages done` }) : '',
      data.errors.map(error => h('pre', { class: 'problem' }, error)));
    if (!root.isConnected) place();
  };
  if (current === '') {
    const [graph, list] = [h('div'), h('div')];
    body.append(graph, list);
    let filter = pairs.get('filter') || '';
    let all = false;
    let newest;
    const input = h('input', { type: 'search', value: filter, placeholder: 'name, operator, state', 'aria-label': 'filter stages', oninput: event => { filter = event.target.value; rows(); } });
    const tableBox = h('div');
    list.append(h('h2', {}, 'Stages'), h('div', { class: 'filters' }, h('label', {}, 'filter', input)), tableBox);
    const rows = () => redraw(tableBox, stages(newest, filter, all, () => { all = true; rows(); }));
    await livingGraph(graph, name, shown, data => { newest = data; top(data); rows(); });
    return;
  }
  if (current === 'log') {
    await shown.watch(api(['runs', name]), top, data => data.state === 'running' ? 1000 : 5000);
    return log(body, name, shown);
  }
  let drawn = false;
  await shown.watch(api(['runs', name]), data => {
    top(data);
    if (drawn && current !== 'tables') return;
    drawn = true;
    if (current === 'tables') shown.beside(tables(body, data, shown));
    else if (current === 'source') shown.beside(source(body, name, shown));
    else if (current === 'curves') shown.beside(runCurves(body, name, shown));
  }, data => data.state === 'running' ? 1000 : 5000);
}

function stages(run, filter, all, more) {
  const words = filter.toLowerCase().split(/\s+/).filter(word => word);
  const found = run.stages.filter(stage => words.every(word => `${stage.stage} ${stage.operator} ${state(stage, run)}`.toLowerCase().includes(word)));
  const rows = found.slice(0, all ? found.length : MOST).map(stage => {
    const told = stage.progress ? far(stage).words : stage.error || stage.because;
    return [h('a', { href: link(['runs', run.run, 'stage', stage.stage]), 'data-key': `stage ${stage.stage}` }, stage.stage), stage.operator, badge(state(stage, run)), told ? h('span', { class: stage.error ? 'bad-text' : '' }, told) : '',
      seconds(stage.seconds), count(stage.rows), bytes(stage.bytes)];
  });
  const columns = [['stage', ''], ['operator', 'soft'], ['state', ''], ['why', 'wide'], ['took', 'number'], ['rows', 'number'], ['size', 'number']];
  return [table(columns, rows, { caption: `${count(found.length)} stages` }),
    rows.length < found.length ? h('button', { onclick: more }, `Show all ${count(found.length)}`) : ''];
}

let tablesOf = '';

async function tables(body, run, shown) {
  const key = run.run + run.shown.map(one => one.digest).join();
  if (key === tablesOf && body.childNodes.length) return;
  tablesOf = key;
  if (!run.shown.length) return redraw(body, h('p', { class: 'soft' }, run.state === 'running' ? 'What the pipeline shows is not done yet.' : 'The pipeline has no show: list, or its tables are not there.'));
  const parts = run.shown.map(one => h('section', {}, h('h2', {}, h('a', { href: link(['artifacts', one.digest]) }, one.port === 'out' ? one.stage : `${one.stage}.${one.port}`))));
  redraw(body, parts);
  for (const [place, one] of run.shown.entries()) {
    try {
      const data = await shown.ask(api(['artifacts', one.digest, 'rows'], { n: 200 }));
      parts[place].append(grid(data.grid, one.stage), data.grid.more ? h('p', { class: 'soft' }, `${count(data.total)} rows in all`) : '');
    } catch (error) {
      parts[place].append(problem(error));
    }
  }
}

async function source(body, name, shown) {
  const data = await shown.ask(api(['runs', name, 'source']));
  redraw(body, data.command.length ? h('p', {}, 'The command line changed: ', h('code', {}, data.command.join(' '))) : '',
    data.text === null ? h('p', { class: 'soft' }, 'The text of the pipeline is not in the store.') : h('pre', { class: 'source', tabindex: 0 }, data.text));
}

async function log(body, name, shown) {
  let [progress, follow, filter] = [false, true, ''];
  const lines = h('ol', { class: 'log', tabindex: 0, role: 'log', 'aria-label': 'log', 'aria-live': 'off' });
  const earlier = h('button', { onclick: () => shown.beside(back()) }, 'Earlier lines');
  const visible = line => { line.hidden = (!progress && line.dataset.kind === 'progress') || !line.dataset.text.includes(filter); };
  const again = () => { [...lines.children].forEach(visible); bottom(); };
  const check = (word, value, change) => h('label', { class: 'check' }, h('input', { type: 'checkbox', checked: value, onchange: event => { change(event.target.checked); again(); } }), word);
  const line = entry => {
    const node = h('li', { class: entry.kind, 'data-kind': entry.kind, 'data-text': `${entry.stage || ''} ${entry.lines.join(' ')}`.toLowerCase() },
      h('time', {}, when(entry.at).slice(11)), h('b', {}, entry.stage || ''), h('span', {}, entry.lines.join('\n')));
    visible(node);
    return node;
  };
  const bottom = () => { if (follow) lines.scrollTop = lines.scrollHeight; };
  body.append(h('div', { class: 'filters' }, earlier, check('progress', progress, on => { progress = on; }), check('follow', follow, on => { follow = on; }),
    h('label', {}, 'filter', h('input', { type: 'search', oninput: event => { filter = event.target.value.toLowerCase(); again(); } }))), lines);
  let [from, to] = [0, 0];
  const back = async () => {
    const data = await shown.ask(api(['runs', name, 'log'], { before: from }));
    const height = lines.scrollHeight - lines.scrollTop;
    lines.prepend(...data.lines.map(line));
    lines.scrollTop = lines.scrollHeight - height;
    from = data.from;
    earlier.disabled = from === 0;
  };
  const first = await shown.ask(api(['runs', name, 'log']));
  [from, to] = [first.from, first.to];
  earlier.disabled = from === 0;
  lines.append(...first.lines.map(line));
  bottom();
  const tail = async () => {
    if (shown.signal.aborted) return;
    let next = 700;
    try {
      const data = await ask(api(['runs', name, 'log'], { from: to }), shown.signal);
      if (data.to > to) { to = data.to; lines.append(...data.lines.map(line)); bottom(); }
      next = data.more ? 0 : data.state === 'running' ? 700 : 5000;
    } catch { if (shown.signal.aborted) return; next = 3000; }
    setTimeout(tail, next);
  };
  tail();
}

/** Lists of reasons. */
const reasons = list => list && list.length ? h('ul', {}, list.map(reason => h('li', {}, reason))) : undefined;

const ports = list => list && list.length ? h('ul', {}, list.map(port => h('li', {}, h('b', {}, port.port), ' ', h('a', { href: link(['artifacts', port.digest]), class: 'mono' }, short(port.digest)),
  port.stage ? ` ${port.stage}` : '', port.layout === 'table' ? `, ${count(port.rows)} rows` : port.layout ? `, ${port.layout}` : ', not in the store'))) : undefined;

export const config = values => values && Object.keys(values).length
  ? h('table', { class: 'config' }, h('tbody', {}, Object.entries(values).map(([name, value]) => h('tr', {}, h('th', { scope: 'row' }, name), h('td', {}, typeof value === 'string' ? value : JSON.stringify(value)))))) : undefined;

export async function stage({ root, named: [run, name], shown, place }) {
  await shown.watch(api(['runs', run, 'stage'], { name }), data => {
    redraw(root, h('p', { class: 'crumbs' }, h('a', { href: link(['runs', run]), 'data-key': 'run' }, 'run ', h('span', { class: 'mono' }, run))),
      h('h1', {}, name, ' ', badge(data.outcome)),
      data.error ? h('pre', { class: 'problem' }, data.error) : '',
      facts([
        ['operator', data.operator && `${data.operator}, version ${data.version}`], ['seed', data.seed], ['key', data.key && h('span', { class: 'mono' }, data.key)],
        ['planned because', reasons(data.because)],
        [data.compared_with ? ['since run ', h('a', { href: link(['runs', data.compared_with]), class: 'mono' }, data.compared_with)] : 'changed', data.compared_with ? reasons(data.changes) : undefined],
        ['it comes down to', data.compared_with ? reasons(data.roots.map(root => `${root.stage}: ${root.because.join('; ')}`)) : undefined],
        ['made by', data.made_by && ['run ', h('a', { href: link(['runs', data.made_by.run]), class: 'mono' }, data.made_by.run), data.made_by.started ? [', ', ago(data.made_by.started)] : '', reasons(data.made_by.because)]],
        ['reads', ports(data.inputs)], ['files', reasons(data.files)], ['left', ports(data.outputs)],
        ['it said', config(data.notes)], ['config', config(data.config)],
      ]));
    if (!root.isConnected) place();
  }, data => ['running', 'waiting'].includes(data.outcome) ? 1000 : undefined);
}
