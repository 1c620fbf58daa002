//! From a GPU kernel's MLIR to MLIR that runs on this CPU.
//!
//! *Takes* a module as the emitters write it, in generic form; *gives* the same functions with every GPU operation turned into a call of one
//! of the functions in [`super::calls`], every access to memory announced by such a call, and one address space; *promises* that an
//! operation it does not know is refused.
//!
//! Calls carry the number of their operation, an index into [`Lowered::sites`], so that reports can quote it.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::text::{Line, accumulator, bytes, parse, split};

/// A function of the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its symbol.
    pub symbol: String,
    /// Number of pointers, maps included.
    pub parameters: usize,
    /// Threads of a block, as the kernel declares.
    pub threads: u32,
}

/// What [`lower`] gives.
#[derive(Clone, Debug, Default)]
pub struct Lowered {
    /// A module for the CPU.
    pub text: String,
    /// Its kernels.
    pub functions: Vec<Function>,
    /// Text of the operations that calls name by number.
    pub sites: Vec<String>,
    /// Their lines in the module, from 0.
    pub lines: Vec<usize>,
}

/// Most f32 registers that one operation takes or gives.
pub const REGISTERS: usize = 256;

/// Flags of the product calls.
pub const ZERO: i32 = 1;
/// A is m-major.
pub const A_MN: i32 = 2;
/// B is n-major.
pub const B_MN: i32 = 4;

struct Writer {
    out: String,
    declared: BTreeMap<String, String>,
    sites: Vec<String>,
    fresh: usize,
}

/// Rewrites a module.
pub fn lower(generic: &str) -> Result<Lowered, String> {
    let mut w = Writer { out: String::new(), declared: BTreeMap::new(), sites: vec![], fresh: 0 };
    let mut functions: Vec<Function> = vec![];
    let mut skipping = false;
    let mut lines = vec![];
    for (number, text) in generic.lines().enumerate() {
        if skipping {
            skipping = !text.trim().starts_with('}');
            continue;
        }
        let Some(line) = parse(text)? else {
            let end = text.trim();
            if end.starts_with("}) {") && end.contains("nvvm.kernel") {
                let threads = end.split_once("nvvm.reqntid = array<i32: ").and_then(|(_, t)| t.split_once('>'));
                let threads = threads.and_then(|(n, _)| n.parse().ok()).ok_or("a kernel without nvvm.reqntid")?;
                functions.last_mut().ok_or("an end without a kernel")?.threads = threads;
                w.plain("}) : () -> ()");
            } else {
                w.plain(text);
            }
            continue;
        };
        match line.name {
            "builtin.module" => {}
            "llvm.mlir.global" => skipping = true,
            "llvm.func" => functions.push(w.function(&line)?),
            _ => {
                let site = w.sites.len();
                if w.operation(&line, site as i32)? {
                    w.sites.push(text.trim().to_string());
                    lines.push(number);
                } else {
                    w.plain(text);
                }
            }
        }
    }
    let mut text = String::from("\"builtin.module\"() ({\n");
    for (name, signature) in &w.declared {
        writeln!(text, "llvm.func @{name}{signature}").expect("strings take everything");
    }
    text.push_str(&super::multiply::text());
    text.push_str(&w.out);
    Ok(Lowered { text, functions, sites: w.sites, lines })
}

impl Writer {
    /// A line as it is, without address spaces.
    fn plain(&mut self, text: &str) {
        let flat = text.replace("ptr<1>", "ptr").replace("ptr<3>", "ptr").replace("ptr<7>", "ptr");
        self.out.push_str(&flat);
        self.out.push('\n');
    }

    fn function(&mut self, line: &Line) -> Result<Function, String> {
        let property = |name| line.property(name).ok_or_else(|| format!("a function without {name}"));
        let (symbol, ty) = (property("sym_name")?, property("function_type")?);
        self.plain(&format!(
            "\"llvm.func\"() <{{CConv = #llvm.cconv<ccc>, function_type = {ty}, linkage = #llvm.linkage<external>, \
             sym_name = {symbol}, visibility_ = 0 : i64}}> ({{"
        ));
        let list = ty.strip_prefix("!llvm.func<void (").and_then(|t| t.strip_suffix(")>"));
        let parameters = split(list.ok_or_else(|| format!("a kernel of type {ty}"))?).len();
        Ok(Function { symbol: symbol.trim_matches('"').to_string(), parameters, threads: 0 })
    }

    fn name(&mut self) -> String {
        self.fresh += 1;
        format!("%emu{}", self.fresh)
    }

    fn integer(&mut self, value: i64, ty: &str) -> String {
        let name = self.name();
        self.plain(&format!("{name} = llvm.mlir.constant({value} : {ty}) : {ty}"));
        name
    }

    fn i32(&mut self, value: i64) -> String {
        self.integer(value, "i32")
    }

    /// `result = name(arguments)`; arguments come with their types.
    fn call(&mut self, result: &str, name: &str, arguments: &[(&str, &str)], ty: &str) {
        let flat = |t: &str| if t.starts_with("!llvm.ptr") { "!llvm.ptr".to_string() } else { t.to_string() };
        let types = arguments.iter().map(|a| flat(a.1)).collect::<Vec<_>>().join(", ");
        let names = arguments.iter().map(|a| a.0).collect::<Vec<_>>().join(", ");
        let (assign, gives) = if result.is_empty() { (String::new(), "()") } else { (format!("{result} = "), ty) };
        let arrow = if result.is_empty() { String::new() } else { format!(" -> {ty}") };
        self.declared.insert(name.to_string(), format!("({types}){arrow}"));
        self.plain(&format!("{assign}llvm.call @{name}({names}) : ({types}) -> {gives}"));
    }

    /// A call with the operands as they are, then the site.
    fn forward(&mut self, line: &Line, name: &str, operands: &[usize], site: i32) -> Result<(), String> {
        let site = self.i32(site.into());
        let mut arguments = vec![];
        for &i in operands {
            arguments.push((operand(line, i)?, line.types[i]));
        }
        arguments.push((&site, "i32"));
        self.call(line.result, name, &arguments, line.results);
        Ok(())
    }

    /// A call of a thread's register file: stores `inputs` there first, loads the result from there.
    fn through_registers(
        &mut self,
        line: &Line,
        inputs: &[(&str, &str)],
        name: &str,
        arguments: &[(&str, &str)],
    ) -> Result<(), String> {
        let registers = self.name();
        self.call(&registers, "emu_registers", &[], "!llvm.ptr");
        for (i, (value, ty)) in inputs.iter().enumerate() {
            let at = self.name();
            self.plain(&format!("{at} = llvm.getelementptr {registers}[{i}] : (!llvm.ptr) -> !llvm.ptr, f32"));
            self.plain(&format!("llvm.store {value}, {at} : {ty}, !llvm.ptr"));
        }
        let all: Vec<(&str, &str)> =
            [(registers.as_str(), "!llvm.ptr")].into_iter().chain(arguments.iter().copied()).collect();
        self.call("", name, &all, "");
        if !line.result.is_empty() {
            self.plain(&format!("{} = llvm.load {registers} : !llvm.ptr -> {}", line.result, line.results));
        }
        Ok(())
    }

    /// Writes an operation of the GPU or an access; false: the operation is the CPU's as well.
    fn operation(&mut self, line: &Line, site: i32) -> Result<bool, String> {
        match line.name {
            "llvm.mlir.addressof" => self.call(line.result, "emu_shared", &[], "!llvm.ptr"),
            "llvm.addrspacecast" => {
                let from = operand(line, 0)?;
                self.plain(&format!("{} = llvm.bitcast {from} : !llvm.ptr to !llvm.ptr", line.result));
            }
            "llvm.ptrtoint" if line.types.first() == Some(&"!llvm.ptr<3>") && line.results == "i32" => {
                self.forward(line, "emu_shared_address", &[0], site)?;
            }
            "llvm.load" => {
                self.access("emu_load", operand(line, 0)?, line.results, line.integer("alignment")?, site)?;
                return self.keep(line);
            }
            "llvm.store" => {
                let ty = line.types.first().copied().unwrap_or("");
                self.access("emu_store", operand(line, 1)?, ty, line.integer("alignment")?, site)?;
                return self.keep(line);
            }
            "llvm.intr.masked.load" => {
                let (pointer, mask) = (operand(line, 0)?, operand(line, 1)?);
                self.masked("emu_masked_load", pointer, mask, line.results, site)?;
                return self.keep(line);
            }
            "llvm.intr.masked.store" => {
                let (pointer, mask) = (operand(line, 1)?, operand(line, 2)?);
                self.masked("emu_masked_store", pointer, mask, line.types[0], site)?;
                return self.keep(line);
            }
            "llvm.intr.prefetch" => {}
            "llvm.call_intrinsic" => self.intrinsic(line)?,
            "llvm.inline_asm" => self.assembly(line, site)?,
            name if name.starts_with("nvvm.") => self.nvvm(line, site)?,
            name if known(name) => return Ok(false),
            name => return Err(format!("the emulator does not know the operation {name}")),
        }
        Ok(true)
    }

    /// Writes the operation itself after its announcement.
    fn keep(&mut self, line: &Line) -> Result<bool, String> {
        let assign = if line.result.is_empty() { String::new() } else { format!("{} = ", line.result) };
        let (operands, types) = (line.operands.join(", "), line.types.join(", "));
        let text =
            format!("{assign}\"{}\"({operands}) <{{{}}}> : ({types}) -> {}", line.name, line.properties, line.results);
        self.plain(&text);
        Ok(true)
    }

    fn access(&mut self, name: &str, pointer: &str, ty: &str, alignment: i64, site: i32) -> Result<(), String> {
        let size = self.i32(bytes(ty)? as i64);
        let (alignment, site) = (self.i32(alignment), self.i32(site.into()));
        self.call("", name, &[(pointer, "!llvm.ptr"), (&size, "i32"), (&alignment, "i32"), (&site, "i32")], "");
        Ok(())
    }

    fn masked(&mut self, name: &str, pointer: &str, mask: &str, ty: &str, site: i32) -> Result<(), String> {
        let lanes = ty.strip_prefix("vector<").and_then(|t| t.split_once('x')).and_then(|(n, _)| n.parse().ok());
        let lanes: usize = lanes.ok_or_else(|| format!("a masked access of {ty}"))?;
        if lanes >= 64 {
            return Err(format!("a masked access of {lanes} lanes"));
        }
        let (bits, wide) = (self.name(), self.name());
        self.plain(&format!("{bits} = llvm.bitcast {mask} : vector<{lanes}xi1> to i{lanes}"));
        self.plain(&format!("{wide} = llvm.zext {bits} : i{lanes} to i64"));
        let size = self.i32((bytes(ty)? / lanes) as i64);
        let site = self.i32(site.into());
        self.call("", name, &[(pointer, "!llvm.ptr"), (&wide, "i64"), (&size, "i32"), (&site, "i32")], "");
        Ok(())
    }

    fn intrinsic(&mut self, line: &Line) -> Result<(), String> {
        let name = match line.property("intrin").unwrap_or("").trim_matches('"') {
            "llvm.nvvm.ex2.approx.ftz.f" => "emu_exp2",
            "llvm.nvvm.lg2.approx.ftz.f" => "emu_log2",
            "llvm.nvvm.rsqrt.approx.ftz.f" => "emu_rsqrt",
            "llvm.nvvm.rcp.approx.ftz.f" => "emu_recip",
            "llvm.nvvm.tanh.approx.f" => "emu_tanh",
            other => return Err(format!("the emulator does not know the intrinsic {other}")),
        };
        if line.types != ["f32"] {
            return Err(format!("{name} of {:?}", line.types));
        }
        self.call(line.result, name, &[(operand(line, 0)?, "f32")], "f32");
        Ok(())
    }

    fn assembly(&mut self, line: &Line, site: i32) -> Result<(), String> {
        let asm = line.property("asm_string").unwrap_or("").trim_matches('"');
        let count = accumulator(line.results)?;
        if count > REGISTERS {
            return Err(format!("{count} registers in one operation"));
        }
        let site = self.i32(site.into());
        let inputs: Vec<(&str, &str)> =
            line.operands.iter().copied().zip(line.types.iter().copied()).take(count).collect();
        if let Some(pending) = asm.strip_prefix("wgmma.wait_group.sync.aligned ") {
            let pending = pending.trim_end_matches(';').parse().map_err(|_| format!("a wait of {pending}"))?;
            let (count, pending) = (self.i32(count as i64), self.i32(pending));
            let arguments = [(count.as_str(), "i32"), (&pending, "i32"), (&site, "i32")];
            return self.through_registers(line, &inputs, "emu_wgmma_wait_values", &arguments);
        }
        let n = 2 * count;
        let list = |from: usize, n: usize| (from..from + n).map(|i| format!("${i}")).collect::<Vec<_>>().join(", ");
        let flags = (0..4).find(|f| {
            let (scale, transposed) = (1 - (f & 1), f >> 1);
            asm == format!(
                "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{}}}, {{{}}}, ${}, {scale}, 1, 1, {transposed};",
                list(0, count),
                list(2 * count, 4),
                2 * count + 4
            )
        });
        let flags = flags.ok_or_else(|| format!("the emulator does not know the assembly {asm}"))?;
        if line.operands.len() != count + 5 {
            return Err(format!("{} operands of {asm}", line.operands.len()));
        }
        let flags = if flags & 1 == 1 { ZERO } else { 0 } | if flags & 2 == 2 { B_MN } else { 0 };
        let (n, flags) = (self.i32(n as i64), self.i32(flags.into()));
        let mut arguments: Vec<(&str, &str)> = (count..count + 5).map(|i| (line.operands[i], line.types[i])).collect();
        arguments.extend([(n.as_str(), "i32"), (&flags, "i32"), (&site, "i32")]);
        self.through_registers(line, &inputs, "emu_wgmma_registers", &arguments)
    }

    fn nvvm(&mut self, line: &Line, site: i32) -> Result<(), String> {
        let all: Vec<usize> = (0..line.operands.len()).collect();
        let layout = |name| line.property(name).unwrap_or("");
        match &line.name["nvvm.".len()..] {
            "read.ptx.sreg.tid.x" => self.call(line.result, "emu_thread", &[], "i32"),
            "read.ptx.sreg.ctaid.x" => self.call(line.result, "emu_block", &[], "i32"),
            "barrier" if line.operands.is_empty() => self.forward(line, "emu_barrier", &[], site)?,
            "barrier" if line.operands.len() == 2 => self.forward(line, "emu_named_barrier", &all, site)?,
            "bar.warp.sync" => self.forward(line, "emu_warp_barrier", &[0], site)?,
            "shfl.sync" => {
                let kind = line.property("kind").unwrap_or("");
                let kind = match kind.trim_start_matches("#nvvm<shfl_kind ").trim_end_matches('>') {
                    "bfly" => "xor",
                    "idx" => "from",
                    other => return Err(format!("the emulator does not know shuffles of kind {other}")),
                };
                self.forward(line, &format!("emu_shuffle_{kind}_{}", line.results), &all, site)?;
            }
            "mbarrier.init" => self.forward(line, "emu_mbarrier_init", &[0, 1], site)?,
            "fence.mbarrier.init" => self.forward(line, "emu_mbarrier_init_fence", &[], site)?,
            "mbarrier.arrive" => self.forward(line, "emu_mbarrier_arrive", &[0], site)?,
            "mbarrier.arrive.expect_tx" => self.forward(line, "emu_mbarrier_expect", &[0, 1], site)?,
            "mbarrier.try_wait.parity" => self.forward(line, "emu_mbarrier_wait", &[0, 1], site)?,
            "cp.async.bulk.tensor.shared.cluster.global" => self.copy(line, site, "emu_tma_load", 2, true)?,
            "cp.async.bulk.tensor.global.shared.cta" => self.copy(line, site, "emu_tma_store", 2, false)?,
            "cp.async.bulk.tensor.prefetch" => self.copy(line, site, "emu_tma_ahead", 1, false)?,
            "cp.async.bulk.commit.group" => self.forward(line, "emu_tma_commit", &[], site)?,
            "cp.async.bulk.wait_group" => {
                let (group, site) = (self.i32(line.integer("group")?), self.i32(site.into()));
                self.call("", "emu_tma_wait", &[(&group, "i32"), (&site, "i32")], "");
            }
            "cp.async.shared.global" => {
                if line.integer("size")? != 16 || !layout("modifier").contains("cg") {
                    return Err(format!("the emulator does not know copies of {}", line.properties));
                }
                let whole = self.i32(16);
                let site = self.i32(site.into());
                let count = line.operands.get(2).copied().unwrap_or(&whole);
                let pointers = [operand(line, 0)?, operand(line, 1)?].map(|p| (p, "!llvm.ptr"));
                self.call("", "emu_copy", &[pointers[0], pointers[1], (count, "i32"), (&site, "i32")], "");
            }
            "cp.async.commit.group" => self.forward(line, "emu_copy_commit", &[], site)?,
            "cp.async.wait.group" => {
                let (n, site) = (self.i32(line.integer("n")?), self.i32(site.into()));
                self.call("", "emu_copy_wait", &[(&n, "i32"), (&site, "i32")], "");
            }
            "prefetch" => self.forward(line, "emu_tma_prefetch", &[0], site)?,
            "fence.proxy" => self.forward(line, "emu_async_fence", &[], site)?,
            "setmaxregister" => {
                let more = layout("action").contains("increase");
                let (count, more, site) =
                    (self.i32(line.integer("regCount")?), self.i32(more.into()), self.i32(site.into()));
                self.call("", "emu_set_registers", &[(&count, "i32"), (&more, "i32"), (&site, "i32")], "");
            }
            "wgmma.fence.aligned" => self.forward(line, "emu_wgmma_fence", &[], site)?,
            "wgmma.commit.group.sync.aligned" => self.forward(line, "emu_wgmma_commit", &[], site)?,
            "wgmma.wait.group.sync.aligned" => {
                let (group, site) = (self.i32(line.integer("group")?), self.i32(site.into()));
                self.call("", "emu_wgmma_wait", &[(&group, "i32"), (&site, "i32")], "");
            }
            "wgmma.mma_async" => self.product(line, site)?,
            "stmatrix" if line.operands.len() == 5 => {
                let name = format!("emu_store_matrix{}", if layout("layout").contains("col") { "_t" } else { "" });
                self.forward(line, &name, &all, site)?;
            }
            "ldmatrix" if line.integer("num")? == 4 => {
                let name = format!("emu_load_matrix{}", if layout("layout").contains("col") { "_t" } else { "" });
                let site = self.i32(site.into());
                self.through_registers(line, &[], &name, &[(operand(line, 0)?, "!llvm.ptr"), (&site, "i32")])?;
            }
            "mma.sync" => {
                let expected = ["i32", "i32", "i32", "i32", "i32", "i32", "f32", "f32", "f32", "f32"];
                if line.types != expected || layout("multiplicandAPtxType") != "#nvvm.mma_type<bf16>" {
                    return Err(format!("the emulator does not know mma.sync of {:?}", line.types));
                }
                let inputs: Vec<(&str, &str)> = line.operands.iter().copied().zip(expected).collect();
                let site = self.i32(site.into());
                self.through_registers(line, &inputs, "emu_mma", &[(&site, "i32")])?;
            }
            other => return Err(format!("the emulator does not know the operation nvvm.{other}")),
        }
        Ok(())
    }

    /// A copy of the bulk copy engine: `leads` pointers, coordinates, which pass through five arguments, the rest of them 0, and perhaps a barrier.
    fn copy(&mut self, line: &Line, site: i32, callee: &str, leads: usize, barrier: bool) -> Result<(), String> {
        let segments = line.property("operandSegmentSizes").unwrap_or("");
        let rank = line.operands.len().saturating_sub(leads + usize::from(barrier));
        let expected = format!("{}{rank}, {}", "1, ".repeat(leads), if barrier { "1, 0, 0, 0, 0" } else { "0, 0" });
        if !(1..=5).contains(&rank) || segments != format!("array<i32: {expected}>") {
            return Err(format!("the emulator does not know {} with operands {segments}", line.name));
        }
        let (zero, n, site) = (self.i32(0), self.i32(rank as i64), self.i32(site.into()));
        let (pointers, rest) = line.operands.split_at(leads);
        let (coordinates, barrier) = rest.split_at(rank);
        let mut arguments: Vec<(&str, &str)> = pointers.iter().chain(barrier).map(|&p| (p, "!llvm.ptr")).collect();
        arguments.push((&n, "i32"));
        arguments.extend((0..5).map(|i| (coordinates.get(i).copied().unwrap_or(&zero), "i32")));
        arguments.push((&site, "i32"));
        self.call("", callee, &arguments, "");
        Ok(())
    }

    fn product(&mut self, line: &Line, site: i32) -> Result<(), String> {
        let property = |name| line.property(name).unwrap_or("");
        let count = accumulator(line.results)?;
        let fixed = [
            ("typeA", "#nvvm.wgmma_type<bf16>"),
            ("typeB", "#nvvm.wgmma_type<bf16>"),
            ("typeD", "#nvvm.wgmma_type<f32>"),
            ("scaleA", "#nvvm.wgmma_scale_in<one>"),
            ("scaleB", "#nvvm.wgmma_scale_in<one>"),
        ];
        let shape = format!("#nvvm.shape<m = 64, n = {}, k = 16>", 2 * count);
        if let Some((name, _)) = fixed.iter().chain([&("shape", shape.as_str())]).find(|(n, v)| property(n) != *v) {
            return Err(format!("the emulator does not know products with {name} = {}", property(name)));
        }
        let zero = property("scaleD") == "#nvvm.wgmma_scale_out<zero>";
        let a_mn = property("layoutA") == "#nvvm.mma_layout<col>";
        let b_mn = property("layoutB") == "#nvvm.mma_layout<row>";
        let flags = if zero { ZERO } else { 0 } | if a_mn { A_MN } else { 0 } | if b_mn { B_MN } else { 0 };
        let (n, flags, site) = (self.i32(2 * count as i64), self.i32(flags.into()), self.i32(site.into()));
        let inputs = [(operand(line, 0)?, line.results)];
        let arguments = [
            (operand(line, 1)?, "i64"),
            (operand(line, 2)?, "i64"),
            (n.as_str(), "i32"),
            (&flags, "i32"),
            (&site, "i32"),
        ];
        self.through_registers(line, &inputs, "emu_wgmma", &arguments)
    }
}

fn operand<'a>(line: &Line<'a>, i: usize) -> Result<&'a str, String> {
    line.operands.get(i).copied().ok_or_else(|| format!("{} has no operand {i}", line.name))
}

/// Operations that mean the same on the CPU.
fn known(name: &str) -> bool {
    let llvm = [
        "getelementptr",
        "extractvalue",
        "insertvalue",
        "mlir.zero",
        "mlir.undef",
        "mlir.constant",
        "return",
        "bitcast",
        "intr.maxnum",
        "intr.minnum",
        "intr.maximum",
        "intr.minimum",
        "intr.fma",
    ];
    ["arith.", "scf.", "vector.", "math."].iter().any(|p| name.starts_with(p))
        || name.strip_prefix("llvm.").is_some_and(|n| llvm.contains(&n))
}
