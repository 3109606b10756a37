// Numbers, times and states as people read them.

import { h } from './dom.js';

export const count = value => value === null || value === undefined ? '' : Math.round(value).toLocaleString('en-US');

export function bytes(value) {
  if (value === null || value === undefined) return '';
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return unit ? `${value.toFixed(1)} ${units[unit]}` : `${value} B`;
}

export function seconds(value) {
  if (value === null || value === undefined) return '';
  if (value < 9.95) return `${value.toFixed(1)} s`;
  if (value < 59.5) return `${Math.round(value)} s`;
  const whole = Math.round(value);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${whole % 60} s`;
}

/** Milliseconds since 1970 as a date and a time, UTC. */
export const when = at => at ? new Date(at).toISOString().slice(0, 19).replace('T', ' ') : '';

/** How long ago, with the time where the pointer rests. */
export function ago(at) {
  const past = Math.max(0, (Date.now() - at) / 1000);
  const steps = [[90, 1, 's'], [5400, 60, 'min'], [129600, 3600, 'h'], [Infinity, 86400, 'd']];
  const [, size, unit] = steps.find(([limit]) => past < limit);
  return h('time', { datetime: new Date(at).toISOString(), title: `${when(at)} UTC` }, `${Math.round(past / size)} ${unit} ago`);
}

export function figure(value) {
  if (value === null || value === undefined) return 'null';
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(3);
  return Number.isInteger(value) ? count(value) : value.toFixed(size >= 100 ? 2 : 4);
}

/** Which colour a state has. */
export function tone(state) {
  switch (state) {
    case 'running': return 'running';
    case 'done': case 'reused': case 'agrees': return 'good';
    case 'ran': return 'ran';
    case 'failed': case 'killed': case 'differs': return 'bad';
    case 'blocked': case 'interrupted': case 'stopped': return 'warn';
    default: return 'idle';
  }
}

/** A state as a badge: its colour never says more than its word. */
export const badge = state => h('span', { class: `badge ${tone(state)}` }, String(state || '').replace('_', ' '));

export const short = digest => (digest || '').slice(0, 12);

export function counts(of) {
  const words = [['ran', 'ran'], ['reused', 'reused'], ['failed', 'failed'], ['blocked', 'blocked'], ['running', 'running']];
  return words.filter(([name]) => of[name]).map(([name, word]) => `${of[name]} ${word}`).join(', ');
}
