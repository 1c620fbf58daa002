//! Warpgroup products (wgmma): issued by 128 threads, run at once or as late as their wait allows.
//!
//! *Takes* descriptors, register fragments and accumulators; *gives* accumulators to those who waited; *promises* the layouts of the hardware
//! and that a result cannot be used before its wait: until then registers hold a marked NaN.
//!
//! A mark is a signalling NaN that names the product and the element. It passes unchanged through registers and memory, so the next product of
//! a chain finds its predecessor, but arithmetic makes it quiet, which is noticed.

use std::collections::VecDeque;
use std::rc::Rc;

use super::block::{Block, Wait};
use super::copy::swizzle;
use super::lower::{A_MN, B_MN, REGISTERS, ZERO};
use super::memory::Memory;
use super::order::Agent;

/// Threads of a warpgroup.
const GROUP: usize = 128;

/// Columns of the widest product.
const WIDEST: usize = 256;

/// The first of the marks: bits of a signalling NaN.
const MARK: u32 = 0x7f80_0000;
/// The bit that arithmetic sets in a NaN.
const QUIET: u32 = 0x0040_0000;

/// The mark of element `e` of product `number`; those of the following elements are the next numbers.
fn mark(number: u64, e: usize) -> u32 {
    MARK | short(number) << 7 | e as u32
}

/// Products are told apart by 15 bits, never 0.
fn short(number: u64) -> u32 {
    (number % 0x7fff) as u32 + 1
}

/// An operand.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Operand {
    Shared { bits: i64, mn: bool },
    Registers,
}

/// A product under way or done.
struct Product {
    site: usize,
    a: Operand,
    b: Operand,
    n: usize,
    zero: bool,
    /// Which threads have issued it.
    issued: usize,
    /// The product whose result is the accumulator.
    after: Option<u64>,
    /// Row by row. Empty before it runs and when a later product has taken it over.
    sum: Vec<f32>,
    /// A in registers, row by row.
    left: Vec<f32>,
    done: bool,
    /// Threads that have taken the result.
    taken: usize,
}

/// Products of a warpgroup.
#[derive(Default)]
pub(super) struct Products {
    /// In the order of issue, the first of them number `first`.
    queue: VecDeque<Product>,
    first: u64,
    /// Products before this number have run.
    run: u64,
    threads: Vec<Issuer>,
}

/// What a thread has issued.
#[derive(Clone, Default)]
struct Issuer {
    next: u64,
    /// Ends of its groups that are not waited for.
    groups: VecDeque<u64>,
    committed: u64,
    /// Products before this number have been waited for.
    waited: u64,
    /// The fence since the last wait, by the number of its operation.
    fence: Option<usize>,
}

impl Products {
    /// Whether all threads have issued the products before a number.
    pub(super) fn issued_by_all(&self, before: u64) -> bool {
        self.threads.len() == GROUP && self.threads.iter().all(|t| t.next >= before)
    }

    /// That every product has been waited for.
    pub(super) fn check_end(&self) -> Result<(), String> {
        if self.threads.iter().any(|t| t.next != t.committed || !t.groups.is_empty()) {
            return Err("ends before it has waited for its products".into());
        }
        Ok(())
    }

    fn thread(&mut self, lane: usize) -> &mut Issuer {
        if self.threads.is_empty() {
            self.threads = vec![Issuer::default(); GROUP];
        }
        &mut self.threads[lane]
    }

    fn get(&mut self, number: u64) -> Option<&mut Product> {
        let i = number.checked_sub(self.first)?;
        self.queue.get_mut(i as usize)
    }

    /// The product a mark's 15 bits mean: the latest such.
    fn marked(&self, bits: u32) -> Option<u64> {
        let end = self.first + self.queue.len() as u64;
        (self.first..end).rev().find(|&n| short(n) == bits)
    }

    /// Forgets results that nobody can ask for any more.
    fn forget(&mut self) {
        while self.queue.len() > 4096 && self.queue.front().is_some_and(|p| p.done) {
            self.queue.pop_front();
            self.first += 1;
        }
    }
}

/// Row and column of a thread's element `e`.
fn place(lane: usize, e: usize) -> (usize, usize) {
    let (j, h, c) = (e / 4, e / 2 % 2, e % 2);
    (lane / 32 * 16 + lane % 32 / 4 + 8 * h, 8 * j + 2 * (lane % 4) + c)
}

/// What the registers given as accumulator hold.
fn accumulator(products: &Products, registers: &[u32], count: usize) -> Result<Option<u64>, String> {
    let number = |bits: u32| {
        let is_mark = bits & 0xffc0_0000 == MARK && bits & 0x003f_ff80 != 0;
        if is_mark { products.marked(bits >> 7 & 0x7fff) } else { None }
    };
    let first = number(registers[0]);
    if let Some(n) = first {
        let whole = registers[..count].iter().zip(mark(n, 0)..).all(|(&bits, mark)| bits == mark);
        if !whole {
            return Err("the accumulator mixes parts of products that are under way".into());
        }
    }
    let used = |bits: u32| bits & 0xffc0_0000 == MARK | QUIET && number(bits & !QUIET).is_some();
    if registers[..count].iter().any(|&b| used(b)) {
        return Err("the accumulator was computed from a product's result before the wait for it".into());
    }
    Ok(first)
}

impl Block {
    /// Allows products to use the thread's registers.
    pub(super) fn product_fence(&mut self) -> Result<(), String> {
        let (group, lane) = self.warpgroup()?;
        self.products[group].thread(lane).fence = Some(self.threads[self.current].site);
        Ok(())
    }

    fn warpgroup(&self) -> Result<(usize, usize), String> {
        let (group, lane) = (self.current / GROUP, self.current % GROUP);
        if (group + 1) * GROUP > self.threads.len() {
            return Err("a product outside of a whole warpgroup".into());
        }
        Ok((group, lane))
    }

    /// Issues a product with both operands in shared memory.
    pub(super) fn product(&mut self, a: i64, b: i64, n: i32, flags: i32) -> Result<(), String> {
        let a = Operand::Shared { bits: a, mn: flags & A_MN != 0 };
        self.issue(a, None, b, n, flags)
    }

    /// Issues a product with A in registers.
    pub(super) fn product_registers(&mut self, a: [u32; 4], b: i64, n: i32, flags: i32) -> Result<(), String> {
        self.issue(Operand::Registers, Some(a), b, n, flags)
    }

    fn issue(&mut self, a: Operand, fragment: Option<[u32; 4]>, b: i64, n: i32, flags: i32) -> Result<(), String> {
        let (group, lane) = self.warpgroup()?;
        let n = n as usize;
        if n == 0 || n % 8 != 0 || n > WIDEST {
            return Err(format!("a product of {n} columns"));
        }
        let b = Operand::Shared { bits: b, mn: flags & B_MN != 0 };
        let zero = flags & ZERO != 0;
        let count = n / 2;
        let site = self.threads[self.current].site;
        let current = self.current;
        let products = &mut self.products[group];
        let (number, fence) = {
            let t = products.thread(lane);
            t.next += 1;
            (t.next - 1, t.fence)
        };
        let after = if zero { None } else { accumulator(products, &self.registers[current], count)? };
        // Registers written by other instructions are read: a fence must lie between.
        if fragment.is_some() || after.is_none() {
            let fence = fence.ok_or("a product uses registers without a fence since the last wait")?;
            self.needed.insert(fence);
        }
        if number == products.first + products.queue.len() as u64 {
            let (sum, left) = (vec![0.0; if zero || after.is_some() { 0 } else { 64 * n }], vec![]);
            products.queue.push_back(Product {
                site,
                a,
                b,
                n,
                zero,
                issued: 0,
                after,
                sum,
                left,
                done: false,
                taken: 0,
            });
            if fragment.is_some() {
                products.queue.back_mut().expect("just pushed").left = vec![0.0; 64 * 16];
            }
        }
        let p = products.get(number).ok_or("a product that was forgotten")?;
        if (p.site, p.a, p.b, p.n, p.after) != (site, a, b, n, after) {
            return Err(format!(
                "the threads of a warpgroup issue different products: operations {} and {site}, {:x?} {:x?} and {a:x?} {b:x?}",
                p.site, p.a, p.b
            ));
        }
        p.issued += 1;
        let issued = p.issued;
        if after.is_none() && !zero {
            for (e, &bits) in self.registers[current][..count].iter().enumerate() {
                let (row, column) = place(lane, e);
                p.sum[row * n + column] = f32::from_bits(bits);
            }
        }
        if let Some(fragment) = fragment {
            for (i, pair) in fragment.into_iter().enumerate() {
                let (row, k) = (lane / 32 * 16 + lane % 32 / 4 + 8 * (i % 2), 8 * (i / 2) + 2 * (lane % 4));
                p.left[row * 16 + k] = f32::from_bits(pair << 16);
                p.left[row * 16 + k + 1] = f32::from_bits(pair & 0xffff_0000);
            }
        }
        if issued == GROUP {
            let (n, a, b) = (p.n, p.a, p.b);
            for (operand, rows) in [(a, 64), (b, n)] {
                let parts = self.parts(operand, rows)?;
                self.note_operand(group, number, &parts.ranges)?;
            }
            if !self.mode.lazy {
                self.run_products(group, number + 1)?;
            }
        }
        let first = mark(number, 0);
        self.registers[current][..count].iter_mut().zip(first..).for_each(|(r, mark)| *r = mark);
        Ok(())
    }

    /// Every warp of the warpgroup must have seen what wrote an operand.
    fn note_operand(&mut self, group: usize, number: u64, reads: &[(u32, u32)]) -> Result<(), String> {
        let by = (Agent::Products(group), number as u32 + 1);
        let site = self.threads[self.current].site;
        let first = group * GROUP;
        for warp in (0..4).map(|w| first + 32 * w) {
            if warp != first && self.order.same_view(first, warp) {
                continue;
            }
            for &(at, bytes) in reads {
                match warp == first {
                    true => self.order.read_async(warp, by, at, bytes, site)?,
                    false => self.order.check_async(warp, at, bytes)?,
                }
            }
        }
        Ok(())
    }

    /// Closes the thread's group.
    pub(super) fn commit_products(&mut self) -> Result<(), String> {
        let (group, lane) = self.warpgroup()?;
        let t = self.products[group].thread(lane);
        t.committed = t.next;
        t.groups.push_back(t.next);
        Ok(())
    }

    /// What to wait for until at most `pending` groups are under way.
    pub(super) fn wait_products(&mut self, pending: i32) -> Result<(Wait, u64), String> {
        let (group, lane) = self.warpgroup()?;
        let site = self.threads[self.current].site;
        let t = self.products[group].thread(lane);
        if t.groups.len() > pending as usize {
            self.needed.insert(site);
        }
        let mut before = 0;
        while t.groups.len() > pending as usize {
            before = t.groups.pop_front().unwrap_or(0);
        }
        t.fence = None;
        t.waited = t.waited.max(before);
        Ok((if before == 0 { Wait::No } else { Wait::Products { before } }, before))
    }

    /// After the wait: runs what is due and replaces marks by results in the first `count` registers.
    pub(super) fn take_products(&mut self, before: u64, count: usize) -> Result<(), String> {
        let (group, lane) = self.warpgroup()?;
        self.run_products(group, before)?;
        let products = &mut self.products[group];
        self.order.acquire_agent(self.current, Agent::Products(group), before as u32);
        let waited = products.thread(lane).waited;
        let mut e = 0;
        while e < count.min(REGISTERS) {
            let bits = self.registers[self.current][e];
            let is_mark = bits & 0xffc0_0000 == MARK && bits & 0x003f_ff80 != 0;
            let number = if is_mark { products.marked(bits >> 7 & 0x7fff) } else { None };
            let due = number.filter(|&n| n < waited);
            let (Some(number), Some(p)) = (due, due.and_then(|n| products.get(n))) else {
                e += 1;
                continue;
            };
            if p.sum.is_empty() {
                return Err(format!("the result of operation {} was overwritten by a later product", p.site));
            }
            let mine = self.registers[self.current].get_mut(e..e + p.n / 2);
            let mine = mine.ok_or("a wait for parts of an accumulator")?;
            for (i, (register, mark)) in mine.iter_mut().zip(mark(number, 0)..).enumerate() {
                if *register != mark {
                    return Err("a wait for parts of an accumulator".into());
                }
                let (row, column) = place(lane, i);
                *register = p.sum[row * p.n + column].to_bits();
            }
            e += p.n / 2;
            p.taken += 1;
            if p.taken == GROUP {
                // Registers hold the result now; a later product gets it from there.
                p.sum = vec![];
            }
        }
        products.forget();
        Ok(())
    }

    /// Runs the products before a number, in order.
    fn run_products(&mut self, group: usize, before: u64) -> Result<(), String> {
        while self.products[group].run < before {
            let number = self.products[group].run;
            let products = &mut self.products[group];
            let after = products.get(number).ok_or("a product that was not issued")?.after;
            let inherited = match after {
                None => None,
                Some(earlier) => Some(std::mem::take(&mut products.get(earlier).ok_or("a forgotten product")?.sum)),
            };
            let p = products.get(number).ok_or("a product that was not issued")?;
            let (a, b, n) = (p.a, p.b, p.n);
            let mut left = std::mem::take(&mut p.left);
            let mut sum = inherited.unwrap_or_else(|| std::mem::take(&mut p.sum));
            if p.zero {
                sum = vec![0.0; 64 * n];
            }
            if sum.len() != 64 * n {
                return Err(format!("operation {} adds to a result that another product has overwritten", p.site));
            }
            if a != Operand::Registers {
                left = vec![0.0; 64 * 16];
                self.fetch(a, 64, [16, 1], &mut left)?;
            }
            let mut right = vec![0.0; 16 * n];
            self.fetch(b, n, [1, n], &mut right)?;
            self.loops.multiply(&mut sum, &left, &right, n);
            let products = &mut self.products[group];
            products.run = number + 1;
            let p = products.get(number).expect("still there");
            p.sum = sum;
            p.done = true;
        }
        Ok(())
    }

    /// Elements `(r, k)` of an operand of `rows` rows and 16 columns, to `out[r * steps[0] + k * steps[1]]`.
    fn fetch(&mut self, operand: Operand, rows: usize, steps: [usize; 2], out: &mut [f32]) -> Result<(), String> {
        let Operand::Shared { mn, .. } = operand else { return Ok(()) };
        let parts = self.parts(operand, rows)?;
        let place = |&(r, k, at): &(u32, u32, u32)| [r * steps[0] as u32 + k * steps[1] as u32, at];
        let places: Vec<[u32; 2]> = parts.places.iter().map(place).collect();
        self.loops.unpack(out, self.memory.window(), &places, steps[usize::from(!mn)]);
        Ok(())
    }

    /// The parts of shared memory that an operand covers, checked.
    fn parts(&mut self, operand: Operand, rows: usize) -> Result<Rc<Parts>, String> {
        let Operand::Shared { bits, mn } = operand else { return Ok(Rc::new(Parts::default())) };
        if let Some(known) = self.operands.get(&(bits, mn, rows)) {
            return Ok(known.clone());
        }
        let layout = Layout::of(bits, mn)?;
        let places: Vec<(u32, u32, u32)> = layout.parts(rows).collect();
        let mut at: Vec<u32> = places.iter().map(|p| p.2).collect();
        at.sort_unstable();
        let mut ranges: Vec<(u32, u32)> = vec![];
        for at in at {
            self.memory
                .shared(self.memory.window() + at as usize, 16, 16)
                .map_err(|what| format!("operand of a product: {what}"))?;
            self.memory.untouched(at, 16)?;
            match ranges.last_mut() {
                Some((start, n)) if *start + *n == at => *n += 16,
                _ => ranges.push((at, 16)),
            }
        }
        let parts = Rc::new(Parts { ranges, places });
        self.operands.insert((bits, mn, rows), parts.clone());
        Ok(parts)
    }
}

/// Where the elements of an operand lie.
#[derive(Default)]
pub(super) struct Parts {
    /// First offset and bytes of what it covers, ascending.
    ranges: Vec<(u32, u32)>,
    /// Row, column and offset of each eight elements in a row.
    places: Vec<(u32, u32, u32)>,
}

/// How an operand lies in shared memory, from its descriptor.
struct Layout {
    start: u32,
    leading: u32,
    stride: u32,
    span: u32,
    mn: bool,
}

impl Layout {
    fn of(bits: i64, mn: bool) -> Result<Layout, String> {
        let bits = bits as u64;
        let field = |shift: u32| ((bits >> shift) as u32 & 0x3fff) << 4;
        let span = [0, 128, 64, 32][(bits >> 62) as usize];
        let layout = Layout { start: field(0), leading: field(16), stride: field(32), span, mn };
        if bits >> 46 & 0xffff != 0 || bits >> 14 & 3 != 0 || bits >> 30 & 3 != 0 {
            return Err(format!("descriptor {bits:#x} has bits outside of its fields"));
        }
        // Rows of a swizzled group count from a multiple of the group.
        if span != 0 && layout.start / span % 8 != 0 {
            return Err(format!(
                "a descriptor starts at shared memory + {}, inside of a group of eight rows of {span} bytes",
                Memory::offset(layout.start)
            ));
        }
        Ok(layout)
    }

    /// Groups of eight elements that are contiguous: row, column and offset of the first. K-major groups run along k, others along rows.
    fn parts(&self, rows: usize) -> impl Iterator<Item = (u32, u32, u32)> {
        let (n, m) = if self.mn { (rows / 8, 16) } else { (rows, 2) };
        (0..n).flat_map(move |i| {
            (0..m).map(move |j| {
                let (i, j) = (i as u32, j as u32);
                let (r, k, offset) = match (self.mn, self.span) {
                    (false, 0) => (i, 8 * j, i / 8 * self.stride + j * self.leading + i % 8 * 16),
                    (false, span) => (i, 8 * j, i / 8 * self.stride + i % 8 * span + j * 16),
                    (true, 0) => (8 * i, j, i * self.stride + j / 8 * self.leading + j % 8 * 16),
                    (true, span) => {
                        let wide = span / 16;
                        (8 * i, j, i / wide * self.leading + i % wide * 16 + j / 8 * self.stride + j % 8 * span)
                    }
                };
                (r, k, swizzle(self.span, self.start + offset))
            })
        })
    }
}
