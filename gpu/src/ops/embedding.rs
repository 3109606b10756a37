//! Row gather and its deterministic scatter-add.

use super::elementwise::add_to;
use crate::frozen::Numbers;
use rayon::prelude::*;

/// `out[t] = table[rows[t]]`, in parallel.
pub(crate) fn gather_rows(table: Numbers, columns: usize, rows: &[u32], out: &mut [f32]) {
    out.par_chunks_mut(64 * columns)
        .zip(rows.par_chunks(64))
        .for_each(|(out, rows)| {
            for (out, &row) in out.chunks_exact_mut(columns).zip(rows) {
                table.write(row as usize * columns, out);
            }
        });
}

/// `table[rows[t]] += grad[t]`: each table row adds its shares in the order of t, table rows in parallel.
pub(crate) fn scatter_add_rows(grad: &[f32], columns: usize, rows: &[u32], table: &mut [f32]) {
    let n = table.len() / columns;
    let mut starts = vec![0u32; n + 1];
    for &row in rows {
        starts[row as usize + 1] += 1;
    }
    for i in 0..n {
        starts[i + 1] += starts[i];
    }
    let mut order = vec![0u32; rows.len()];
    let mut next = starts.clone();
    for (t, &row) in rows.iter().enumerate() {
        order[next[row as usize] as usize] = t as u32;
        next[row as usize] += 1;
    }
    table.par_chunks_mut(columns).enumerate().for_each(|(row, out)| {
        for &t in &order[starts[row] as usize..starts[row + 1] as usize] {
            add_to(out, &grad[t as usize * columns..][..columns]);
        }
    });
}
