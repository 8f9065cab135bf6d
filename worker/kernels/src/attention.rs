//! Causal attention over the KV pool: every row looks at the positions up to its own.
//!
//! **Bits.** A query is computed alone: scores ascend over the elements of the head, one position to a lane; the weights
//! exp(score - largest) are summed in 16 lanes over ascending blocks of positions aligned to multiples of 16, folded as
//! [`Simd::sum`] does; values are added in ascending positions; the sum divides last. Positions that are masked have the
//! weight zero, and adding zero times a finite value changes nothing, so queries that share a tile do not show.

use std::cmp::Reverse;
use std::ops::Range;

use crate::kv::{BLOCK_POSITIONS, KvPool, KvShape, Span, Spans};
use crate::pool::Pool;
use crate::rope::Heads;
use crate::rows::{Rows, Shared};
use crate::simd::{FEWEST_SUMS, LANES, MOST_SUMS, Op, Simd, dispatch, sums_of};
use crate::vector::exp;

/// Up to here there is a kernel for every number of queries.
const EVERY_NUMBER: usize = 8;
/// Sums that hide the latency of a multiply-add, twice over: fewer queries have several each.
const CHAINS: usize = 16;

/// Tasks for each thread, at least, or they are made smaller: three tasks of equal length take two threads as long as four.
const TASKS_PER_THREAD: usize = 2;

/// Bytes of weights of a task, at most, or it is made smaller: they are read again for each column of the values, and are to
/// stay in a second level cache of 2 MiB.
const WEIGHT_BYTES: usize = 1 << 20;

/// Blocks between the one that is used and the one that is asked for from memory: blocks lie anywhere in the pool, so that
/// the processor cannot guess the next one.
const AHEAD: usize = 4;
/// Bytes that come from memory together.
const CACHE_LINE: usize = 64;

/// Queries of one key/value head and one sequence.
#[derive(Clone, Copy, Debug)]
struct Task {
    span: usize,
    /// First row within the span, and how many.
    first: usize,
    rows: usize,
    kv_head: usize,
    /// First of the query heads that share the key/value head, and how many.
    head: usize,
    heads: usize,
}

/// The operator, with its working memory.
#[derive(Debug)]
pub struct Attention {
    heads: Heads,
    tasks: Vec<Task>,
    /// For each thread.
    scratch: Vec<Scratch>,
}

/// Working memory of a thread.
#[derive(Debug, Default)]
struct Scratch {
    /// `[head_dim, queries]`
    queries: Vec<f32>,
    /// `[blocks, queries, BLOCK_POSITIONS]`: scores, then weights.
    weights: Vec<[f32; LANES]>,
}

impl Attention {
    /// For models with these heads.
    pub fn new(heads: Heads) -> Self {
        Self { heads, tasks: Vec::new(), scratch: Vec::new() }
    }

    /// Lays out the work of a step: the same in all layers.
    pub fn plan(&mut self, pool: &Pool, spans: &Spans) {
        let (most, threads) = (sums_of(pool.isa()), pool.threads());
        // Queries that are together have a sum each, and each key and value is widened once for all of them. As many as leave every
        // thread enough to do; the fewest, if none do.
        for size in [most, most / 2, most / 3].into_iter().filter(|size| *size >= FEWEST_SUMS) {
            self.lay_out(spans, size);
            if self.tasks.len() >= TASKS_PER_THREAD * threads {
                break;
            }
        }
        // The longest come first, so that no thread is left with one at the end; then as they were laid out, which is where their
        // keys and values lie.
        let lines = |task: &Task| lines(&spans.spans[task.span], task);
        self.tasks.sort_unstable_by_key(|task| (Reverse(lines(task)), task.span, task.first, task.kv_head, task.head));
        let lines = self.tasks.first().map_or(0, lines);
        self.scratch.resize_with(threads, Scratch::default);
        for scratch in &mut self.scratch {
            scratch.queries.resize(self.heads.dim * MOST_SUMS, 0.0);
            if lines > scratch.weights.len() {
                scratch.weights.resize(lines, [0.0; LANES]);
            }
        }
    }

    /// Tasks of `together` queries at most.
    fn lay_out(&mut self, spans: &Spans, together: usize) {
        let Heads { queries, kv, .. } = self.heads;
        let shared = queries / kv;
        self.tasks.clear();
        for (index, span) in spans.spans.iter().enumerate() {
            let weights = blocks_of(span, span.rows) * size_of::<[f32; LANES]>();
            let together = together.min((WEIGHT_BYTES / weights).max(FEWEST_SUMS));
            let rows_together = (together / shared).max(1);
            for first in (0..span.rows).step_by(rows_together) {
                let rows = rows_together.min(span.rows - first);
                for kv_head in 0..kv {
                    for within in (0..shared).step_by(together) {
                        let (head, heads) = (kv_head * shared + within, together.min(shared - within));
                        self.tasks.push(Task { span: index, first, rows, kv_head, head, heads });
                    }
                }
            }
        }
    }

    /// Computes `out`, `[rows, heads x head_dim]`, from the queries in `projections` and what `layer` of `kv` holds. `spans`
    /// are those of the last [`Attention::plan`].
    pub fn compute(
        &mut self,
        pool: &mut Pool,
        projections: &Rows,
        spans: &Spans,
        (kv, layer): (&KvPool, usize),
        out: &mut Rows,
    ) {
        let (heads, shape) = (self.heads, kv.shape());
        assert_eq!((heads.kv, heads.dim), (shape.kv_heads, shape.head_dim), "heads");
        assert_eq!((projections.width(), out.width()), (heads.width(), heads.queries * heads.dim), "widths");
        assert_eq!(projections.count(), out.count(), "rows");
        assert!(self.scratch.len() >= pool.threads(), "a plan for as many threads");
        spans.check(out.count(), kv);
        let (isa, stride) = (pool.isa(), out.stride());
        let (layer, out) = (kv.layer(layer), Shared::new(out.values_mut()));
        let (tasks, scratch) = (&self.tasks, Shared::new(&mut self.scratch));
        pool.split(tasks.len(), 1, |thread, items| {
            for item in items {
                // SAFETY: each thread has its own, and there are as many as threads.
                let scratch = unsafe { &mut scratch.part(thread, 1)[0] };
                let (task, span) = (tasks[item], spans.spans[tasks[item].span]);
                assert!(task.first + task.rows <= span.rows, "a plan of other spans");
                let blocks = spans.blocks(&span);
                let attend = Attend { task, span, blocks, projections, layer, shape, scratch, out: &out, stride };
                dispatch(isa, attend);
            }
        });
    }
}

/// Blocks that hold what the first `rows` rows of a span look at.
fn blocks_of(span: &Span, rows: usize) -> usize {
    (span.position + rows).div_ceil(BLOCK_POSITIONS)
}

/// Queries that a task of `count` is computed as: there is not a kernel for every number. Those that nobody asked for cost time
/// and nothing else.
const fn padded_to(count: usize) -> usize {
    if count <= EVERY_NUMBER { count } else { count.next_multiple_of(4) }
}

/// Lines of weights of a task.
fn lines(span: &Span, task: &Task) -> usize {
    blocks_of(span, task.first + task.rows) * padded_to(task.rows * task.heads)
}

struct Attend<'a> {
    task: Task,
    span: Span,
    blocks: &'a [u32],
    projections: &'a Rows,
    layer: &'a [u16],
    shape: KvShape,
    scratch: &'a mut Scratch,
    out: &'a Shared<f32>,
    stride: usize,
}

impl Op for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match padded_to(self.task.rows * self.task.heads) {
            1 => self.queries::<S, 1, 1>(s),
            2 => self.queries::<S, 2, 2>(s),
            3 => self.queries::<S, 3, 3>(s),
            4 => self.queries::<S, 4, 4>(s),
            5 => self.queries::<S, 5, 5>(s),
            6 => self.queries::<S, 6, 6>(s),
            more if S::SUMS < MOST_SUMS => unreachable!("{more} sums of {}", S::SUMS),
            7 => self.queries::<S, 7, 7>(s),
            8 => self.queries::<S, 8, 8>(s),
            12 => self.queries::<S, 12, 12>(s),
            16 => self.queries::<S, 16, 8>(s),
            20 => self.queries::<S, 20, 10>(s),
            _ => self.queries::<S, MOST_SUMS, 12>(s),
        }
    }
}

impl Attend<'_> {
    /// The task as `Q` queries, of which `H` have their sums in registers at a time: each element of theirs is read once for
    /// two sums or more, or reading would be what takes the time.
    #[inline(always)]
    fn queries<S: Simd, const Q: usize, const H: usize>(mut self, s: S) {
        const { assert!(Q.is_multiple_of(H), "parts of equal size") };
        self.gather::<Q>();
        // Position of each query: it looks at as many before it, and at itself.
        let mut limits = [0; Q];
        for (query, limit) in limits.iter_mut().enumerate() {
            *limit = self.span.position + self.task.first + self.row_of(query);
        }
        let blocks = blocks_of(&self.span, self.task.first + self.task.rows);
        let largest = self.score::<S, Q, H>(s, &limits, blocks);
        let sums = self.weigh(s, &largest, blocks);
        self.mix::<S, Q, H>(s, &sums, blocks);
    }

    /// The row of a query within the task. Queries beyond the task's are computed like those of its last row.
    #[inline(always)]
    fn row_of(&self, query: usize) -> usize {
        (query / self.task.heads).min(self.task.rows - 1)
    }

    /// Queries side by side, so that one pointer leads to all.
    #[inline(always)]
    fn gather<const Q: usize>(&mut self) {
        let (task, dim) = (self.task, self.shape.head_dim);
        for query in 0..Q {
            let (row, head) = (self.span.first_row + task.first + self.row_of(query), task.head + query % task.heads);
            let from = &self.projections.padded_row(row)[head * dim..][..dim];
            for (element, &value) in from.iter().enumerate() {
                self.scratch.queries[element * Q + query] = value;
            }
        }
    }

    #[inline(always)]
    fn block(&self, block: usize) -> &[u16] {
        let at = self.blocks[block] as usize * self.shape.block_size();
        &self.layer[at + self.task.kv_head * self.shape.head_size()..][..self.shape.head_size()]
    }

    /// Writes the scores and returns the largest of each query.
    #[inline(always)]
    fn score<S: Simd, const Q: usize, const H: usize>(&mut self, s: S, limits: &[usize; Q], blocks: usize) -> [f32; Q] {
        let mut largest = [s.splat(f32::NEG_INFINITY); Q];
        let mut block = 0;
        // Few queries are few chains of multiply-adds, each of which waits for the last: two blocks hide that.
        while H * 2 <= S::SUMS && block + 2 <= blocks {
            for first in (0..Q).step_by(H) {
                self.score_blocks::<S, Q, H, 2>(s, limits, (block..blocks, first), &mut largest);
            }
            block += 2;
        }
        while block < blocks {
            for first in (0..Q).step_by(H) {
                self.score_blocks::<S, Q, H, 1>(s, limits, (block..blocks, first), &mut largest);
            }
            block += 1;
        }
        let mut lanes = [0.0; LANES];
        let mut best = [0.0; Q];
        for query in 0..Q {
            s.store(largest[query], &mut lanes);
            best[query] = lanes.iter().fold(f32::NEG_INFINITY, |best, &lane| if lane > best { lane } else { best });
        }
        best
    }

    /// The first `B` of the blocks that are left, for the `H` queries from `first_query` on.
    #[inline(always)]
    fn score_blocks<S: Simd, const Q: usize, const H: usize, const B: usize>(
        &mut self,
        s: S,
        limits: &[usize; Q],
        (left, first_query): (Range<usize>, usize),
        largest: &mut [S::F; Q],
    ) {
        let first = left.start;
        let scale = s.splat(1.0 / (self.shape.head_dim as f32).sqrt());
        let mut scores = [[s.splat(0.0); H]; B];
        let dim = self.shape.head_dim;
        let mut keys: [&[[u16; LANES]]; B] = [&[]; B];
        let mut ahead: [&[[u16; LANES]]; B] = [&[]; B];
        for within in 0..B {
            keys[within] = &self.block(first + within).as_chunks::<LANES>().0[..dim];
            ahead[within] = &self.block((first + within + AHEAD).min(left.end - 1)).as_chunks::<LANES>().0[..dim];
        }
        let queries = &self.scratch.queries.as_chunks::<Q>().0[..dim];
        for element in 0..dim {
            for within in 0..B {
                if (element * size_of::<[u16; LANES]>()).is_multiple_of(CACHE_LINE) {
                    s.prefetch_far(ahead[within][element].as_ptr().cast());
                }
            }
            let mut wide = [s.splat(0.0); B];
            for within in 0..B {
                wide[within] = s.load_f16(&keys[within][element]);
            }
            let queries: &[f32; H] = queries[element][first_query..].first_chunk().expect("whole parts");
            for query in 0..H {
                let value = s.splat(queries[query]);
                for within in 0..B {
                    scores[within][query] = s.fma(wide[within], value, scores[within][query]);
                }
            }
        }
        let limits: &[usize; H] = limits[first_query..].first_chunk().expect("whole parts");
        let largest: &mut [S::F; H] = largest[first_query..].first_chunk_mut().expect("whole parts");
        for within in 0..B {
            let block = first + within;
            let to = &mut self.scratch.weights[block * Q + first_query..][..H];
            for query in 0..H {
                let score = mask(s, s.mul(scores[within][query], scale), limits[query] + 1, block);
                largest[query] = s.max(score, largest[query]);
                s.store(score, &mut to[query]);
            }
        }
    }

    /// Turns scores into weights and returns their sums.
    #[inline(always)]
    fn weigh<S: Simd, const Q: usize>(&mut self, s: S, largest: &[f32; Q], blocks: usize) -> [f32; Q] {
        let mut sums = [s.splat(0.0); Q];
        for block in 0..blocks {
            let weights = &mut self.scratch.weights[block * Q..][..Q];
            for query in 0..Q {
                let weight = exp(s, s.sub(s.load(&weights[query]), s.splat(largest[query])));
                sums[query] = s.add(sums[query], weight);
                s.store(weight, &mut weights[query]);
            }
        }
        let mut total = [0.0; Q];
        for query in 0..Q {
            total[query] = s.sum(sums[query]);
        }
        total
    }

    /// The weighted values, divided by the sums of the weights.
    #[inline(always)]
    fn mix<S: Simd, const Q: usize, const H: usize>(&self, s: S, sums: &[f32; Q], blocks: usize) {
        let columns = self.shape.value_stride() / LANES;
        let mut column = 0;
        // As many accumulators as hide the latency of a multiply-add, and as fit the registers.
        while H * 4 <= S::SUMS.min(CHAINS) && column + 4 <= columns {
            for query in (0..Q).step_by(H) {
                self.mix_columns::<S, Q, H, 4>(s, sums, blocks, (column, query));
            }
            column += 4;
        }
        while H * 2 <= S::SUMS && column + 2 <= columns {
            for query in (0..Q).step_by(H) {
                self.mix_columns::<S, Q, H, 2>(s, sums, blocks, (column, query));
            }
            column += 2;
        }
        while column < columns {
            for query in (0..Q).step_by(H) {
                self.mix_columns::<S, Q, H, 1>(s, sums, blocks, (column, query));
            }
            column += 1;
        }
    }

    /// `C` columns from `first` on, of the `H` queries from `first_query` on.
    #[inline(always)]
    fn mix_columns<S: Simd, const Q: usize, const H: usize, const C: usize>(
        &self,
        s: S,
        sums: &[f32; Q],
        blocks: usize,
        (first, first_query): (usize, usize),
    ) {
        let (dim, columns) = (self.shape.head_dim, self.shape.value_stride() / LANES);
        let mut mixed = [[s.splat(0.0); H]; C];
        for block in 0..blocks {
            let values = self.block(block)[dim * BLOCK_POSITIONS..].as_chunks::<LANES>().0;
            let ahead = self.block((block + AHEAD).min(blocks - 1))[dim * BLOCK_POSITIONS..].as_chunks::<LANES>().0;
            let weights: &[_; H] =
                self.scratch.weights[block * Q + first_query..].first_chunk().expect("lines of all queries");
            for (position, values) in values.chunks_exact(columns).take(BLOCK_POSITIONS).enumerate() {
                for column in (first..first + C).step_by(CACHE_LINE / size_of::<[u16; LANES]>()) {
                    s.prefetch_far(ahead[position * columns + column].as_ptr().cast());
                }
                let values = &values[first..first + C];
                let mut wide = [s.splat(0.0); C];
                for within in 0..C {
                    wide[within] = s.load_f16(&values[within]);
                }
                for query in 0..H {
                    let weight = s.splat(weights[query][position]);
                    for within in 0..C {
                        mixed[within][query] = s.fma(wide[within], weight, mixed[within][query]);
                    }
                }
            }
        }
        for within in 0..H {
            let query = first_query + within;
            if query < self.task.rows * self.task.heads {
                let share = s.splat(1.0 / sums[query]);
                for column in 0..C {
                    self.write(s, query, first + column, s.mul(mixed[column][within], share));
                }
            }
        }
    }

    #[inline(always)]
    fn write<S: Simd>(&self, s: S, query: usize, column: usize, mixed: S::F) {
        let (task, dim) = (self.task, self.shape.head_dim);
        let row = self.span.first_row + task.first + query / task.heads;
        let at = row * self.stride + (task.head + query % task.heads) * dim + column * LANES;
        let length = LANES.min(dim - column * LANES);
        // SAFETY: inside the row, and no other task has this row and head.
        let to = unsafe { self.out.part(at, length) };
        if let Ok(to) = <&mut [f32; LANES]>::try_from(&mut *to) {
            s.store(mixed, to);
        } else {
            let mut lanes = [0.0; LANES];
            s.store(mixed, &mut lanes);
            to.copy_from_slice(&lanes[..length]);
        }
    }
}

/// Lane i's position in a block.
const POSITIONS: [f32; LANES] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// Positions from `end` on score -inf.
#[inline(always)]
fn mask<S: Simd>(s: S, scores: S::F, end: usize, block: usize) -> S::F {
    let left = end.saturating_sub(block * BLOCK_POSITIONS);
    if left >= BLOCK_POSITIONS {
        return scores;
    }
    s.select_lt(s.load(&POSITIONS), s.splat(left as f32), scores, s.splat(f32::NEG_INFINITY))
}

const _: () = assert!(LANES == BLOCK_POSITIONS, "a lane is a position");
