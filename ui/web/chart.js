// Lines over a number: losses over steps. Drawn to the width that there is; values are told where the pointer is.

import { h, s } from './dom.js';
import { count, figure } from './words.js';

const HEIGHT = 240;
const [LEFT, RIGHT, TOP, BOTTOM] = [58, 20, 10, 26];

/** Round numbers that cover a range. */
function ticks(low, high, about) {
  const rough = (high - low) / about || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(step => step >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) found.push(Number(tick.toPrecision(12)));
  return found;
}

const label = value => {
  const size = Math.abs(value);
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(4))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(4))}k`;
  return size !== 0 && size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(4)));
};

/** A chart of series `{ name, points: [[x, y]], href? }`; `set(series)` draws others. */
export function chart(title, unit) {
  const plot = h('div', { class: 'plot' });
  const reading = h('p', { class: 'reading soft', 'aria-hidden': 'true' }, ' ');
  const legend = h('ul', { class: 'legend' });
  const box = h('figure', { class: 'chart', 'data-chart': title }, h('figcaption', {}, title), plot, reading, legend);
  let series = [];
  let scale;

  function draw() {
    const width = Math.max(260, plot.clientWidth || 640);
    const points = series.flatMap(one => one.points);
    if (!points.length) return plot.replaceChildren(h('p', { class: 'soft' }, 'no values yet'));
    const bounds = place => {
      const values = points.map(point => point[place]);
      return [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
    };
    const [left, right] = bounds(0);
    let [low, high] = bounds(1);
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    [low, high] = [low - room, high + room];
    const x = value => LEFT + (value - left) / (right - left || 1) * (width - LEFT - RIGHT);
    const y = value => TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM);
    scale = { x, y, left, right, width };
    const across = ticks(low, high, 4).map(tick => [
      s('line', { class: 'rule', x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
      s('text', { class: 'tick', x: LEFT - 6, y: y(tick) + 4, 'text-anchor': 'end' }, label(tick)),
    ]);
    const steps = ticks(left, right, Math.max(3, Math.floor(width / 100)));
    const down = steps.map(tick => s('text', { class: 'tick', x: x(tick), y: HEIGHT - 8, 'text-anchor': 'middle' }, label(tick)));
    const lines = series.map((one, place) => {
      const path = one.points.map((point, index) => `${index ? 'L' : 'M'}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`).join('');
      const end = one.points[one.points.length - 1];
      return [s('path', { class: `line c${place % 8}`, d: path }), end && s('circle', { class: `dot c${place % 8}`, cx: x(end[0]), cy: y(end[1]), r: 3 })];
    });
    const told = series.map(one => {
      const end = one.points[one.points.length - 1];
      return end ? `${one.name} ${figure(end[1])} at ${count(end[0])} ${unit}` : one.name;
    });
    plot.replaceChildren(s('svg', { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: 'img', 'aria-label': `${title}: ${told.join('; ')}` },
      across, down, lines, s('line', { class: 'hair', y1: TOP, y2: HEIGHT - BOTTOM, x1: -9, x2: -9 })));
  }

  function read(event) {
    const picture = plot.querySelector('svg');
    if (!picture || !scale) return;
    const at = event.clientX - picture.getBoundingClientRect().left;
    const value = scale.left + (at - LEFT) / (scale.width - LEFT - RIGHT) * (scale.right - scale.left);
    const near = series.filter(one => one.points.length).map(one => {
      const point = one.points.reduce((best, point) => Math.abs(point[0] - value) < Math.abs(best[0] - value) ? point : best);
      return [one, point];
    });
    if (!near.length) return;
    const hair = picture.querySelector('.hair');
    hair.setAttribute('x1', scale.x(near[0][1][0]));
    hair.setAttribute('x2', scale.x(near[0][1][0]));
    reading.textContent = near.slice(0, 6).map(([one, point]) => `${one.name}: ${figure(point[1])} at ${count(point[0])} ${unit}`).join('   ');
  }

  plot.addEventListener('pointermove', read);
  new ResizeObserver(() => { if (scale && plot.clientWidth && plot.clientWidth !== scale.width) draw(); }).observe(plot);
  return {
    box,
    set(others) {
      series = others;
      draw();
      const entry = (one, place) => h('li', {}, h('span', { class: `key c${place % 8}` }), one.href ? h('a', { href: one.href }, one.name) : one.name,
        one.points.length ? h('b', {}, ` ${figure(one.points[one.points.length - 1][1])}`) : '');
      legend.replaceChildren(...series.map(entry));
    },
  };
}
