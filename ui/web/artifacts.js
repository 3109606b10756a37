// Artifacts: the list with a filter, and one with its schema, first rows, and what it is made of.

import { api, facts, grid, h, link, problem, put, redraw, table } from './dom.js';
import { bytes, count, seconds, short } from './words.js';
import { config } from './run.js';

const nameOf = one => one.port === 'out' ? one.stage : `${one.stage}.${one.port}`;

export async function artifacts({ root, pairs, shown, place }) {
  const asked = { search: pairs.get('search') || '', layout: pairs.get('layout') || '', sort: pairs.get('sort') || 'newest', page: pairs.get('page') || '' };
  const body = h('div');
  let timer;
  const go = change => {
    Object.assign(asked, { page: '' }, change);
    history.replaceState(null, '', link(['artifacts'], asked));
    clearTimeout(timer);
    timer = setTimeout(load, 150);
  };
  const search = h('input', { type: 'search', value: asked.search, placeholder: 'stage, operator, column, digest, run', 'aria-label': 'search artifacts', oninput: event => go({ search: event.target.value }) });
  const layouts = h('select', { 'aria-label': 'kind', onchange: event => go({ layout: event.target.value }) });
  const sorts = h('select', { 'aria-label': 'order', onchange: event => go({ sort: event.target.value }) },
    [['newest', 'newest first'], ['stage', 'by stage'], ['size', 'largest first'], ['rows', 'most rows first']].map(([value, word]) => h('option', { value, selected: value === asked.sort }, word)));
  const load = async () => {
    try {
      const data = await shown.ask(api(['artifacts'], asked));
      if (!layouts.options.length) layouts.append(h('option', { value: '' }, 'all kinds'), ...data.layouts.map(value => h('option', { value, selected: value === asked.layout }, value)));
      const columns = [['artifact', ''], ['operator', 'soft'], ['kind', ''], ['rows', 'number'], ['columns', 'number'], ['size', 'number'], ['pipeline', ''], ['first made in', '']];
      const row = one => [h('a', { href: link(['artifacts', one.digest]) }, nameOf(one)), one.operator, one.layout, one.layout === 'table' ? count(one.rows) : '', one.layout === 'table' ? count(one.columns) : '',
        bytes(one.bytes), one.pipeline || '', h('a', { href: link(['runs', one.run]), class: 'mono' }, one.run)];
      const step = (page, word) => page >= 0 && page < data.pages ? h('button', { onclick: () => { go({ page }); asked.page = page; } }, word) : '';
      redraw(body, h('p', { class: 'soft', role: 'status' }, data.found === data.total ? `${count(data.total)} artifacts` : `${count(data.found)} of ${count(data.total)} artifacts`),
        table(columns, data.artifacts.map(row), { caption: 'Artifacts' }),
        data.pages > 1 ? h('div', { class: 'pager' }, step(data.page - 1, 'Before'), ` page ${data.page + 1} of ${data.pages} `, step(data.page + 1, 'After')) : '');
    } catch (error) {
      if (!shown.signal.aborted) redraw(body, problem(error));
    }
  };
  put(root, h('h1', {}, 'Artifacts'), h('div', { class: 'filters' }, search, layouts, sorts), body);
  await load();
  place();
}

export async function artifact({ root, named: [digest], shown, place }) {
  const data = await shown.ask(api(['artifacts', digest]));
  const isTable = data.layout === 'table';
  const schema = column => {
    const more = Object.entries(column).filter(([name]) => !['name', 'type', 'nullable'].includes(name)).map(([name, value]) => `${name}: ${value}`).join('; ');
    return [column.name, h('code', {}, column.type), column.nullable ? 'may be null' : '', more];
  };
  const from = data.inputs.map(input => h('li', {}, h('b', {}, input.port), ' ', input.here ? h('a', { href: link(['artifacts', input.digest]) }, nameOf({ stage: input.stage, port: input.output })) : 'no longer here', ' ', h('span', { class: 'mono soft' }, short(input.digest))));
  const readers = data.readers.map(reader => h('li', {}, reader.digest ? h('a', { href: link(['artifacts', reader.digest]) }, reader.stage) : 'a stage whose artifacts are gone', ` (${reader.operator}, as ${reader.ports.join(', ')})`));
  const page = data.files.find(file => file.name.endsWith('.html'));
  const rows = h('div');
  const name = nameOf(data);
  const question = `SELECT * FROM run('${data.run}', '${name.replaceAll("'", "''")}') LIMIT 100`;
  put(root, 
    h('p', { class: 'crumbs' }, h('a', { href: '#/artifacts' }, 'Artifacts')),
    h('h1', {}, name),
    facts([
      ['made by', data.operator], ['pipeline', data.pipeline && h('a', { href: link(['pipelines', data.pipeline]) }, data.pipeline)],
      ['first made in', ['run ', h('a', { href: link(['runs', data.run, 'stage', data.stage]), class: 'mono' }, data.run), `, in ${seconds(data.seconds)}`]],
      [isTable ? 'rows' : 'kind', isTable ? count(data.rows) : data.layout], ['size', `${bytes(data.bytes)} in ${count(data.files.length)} files`],
      ['digest', h('span', { class: 'mono' }, data.digest)], ['lies at', h('span', { class: 'mono' }, data.path)], ['software', data.software],
    ]),
    page ? report(data, page) : '',
    h('h2', {}, isTable ? 'First rows' : 'What is in it'), rows,
    isTable ? h('p', {}, h('a', { href: link(['sql'], { q: question }) }, 'Ask in SQL')) : '',
    isTable ? [h('h2', {}, 'Schema'), table([['column', ''], ['type', ''], ['', 'soft'], ['facts', 'soft']], data.schema.map(schema), { caption: 'Columns' })] : '',
    h('h2', {}, 'Where it is from'), facts([
      ['key', data.keys.map(key => h('div', {}, h('span', { class: 'mono' }, key.key), ' of run ', h('a', { href: link(['runs', key.run]), class: 'mono' }, key.run)))],
      ['version', data.preimage.version], ['seed', data.preimage.seed],
      ['reads', from.length ? h('ul', {}, from) : undefined], ['files', Object.keys(data.preimage.files).join(', ')],
      ['read by', readers.length ? h('ul', {}, readers) : 'nothing yet'], ['it said', config(data.notes)], ['config', config(data.preimage.config)],
    ]));
  place();
  const look = async n => {
    try {
      const first = await shown.ask(api(['artifacts', digest, 'rows'], { n }));
      redraw(rows, grid(first.grid, `first rows of ${name}`), first.grid.more && n < 500 ? h('button', { onclick: () => look(500) }, 'More rows') : '');
    } catch (error) {
      if (!shown.signal.aborted) redraw(rows, problem(error));
    }
  };
  await look(20);
}

/** A page that is an artifact, in a frame where no script runs. */
function report(data, file) {
  const address = api(['artifacts', data.digest, 'files', file.name]);
  return [h('h2', {}, 'Report'), h('p', {}, h('a', { href: address, target: '_blank', rel: 'noopener' }, 'In a tab of its own')),
    h('iframe', { src: address, sandbox: '', title: 'report', class: 'report' })];
}
