//! The driver's table, memory, launches and graphs on the fake driver.

use std::sync::Arc;

use super::cublaslt::Cublas;
use super::fake::{Library, kernel};
use super::*;
use crate::device::toy::{self, Toy};
use crate::plan::{Call, DType, Factor, Kernel, KernelFn, Place, Product, Segment, TensorMap};

fn text(name: &str, pointers: usize, maps: usize, f: KernelFn) -> String {
    kernel(name, pointers, maps, &format!("{:p}", f as *const ()))
}

fn open(options: &[&str]) -> (Library, crate::error::Result<Gpu>) {
    let library = Library::new(options);
    let gpu = Gpu::open_named(library.name(), 0);
    (library, gpu)
}

fn all<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

#[test]
fn machines_without_a_fitting_gpu_are_told_why() {
    let says = |result: crate::error::Result<Gpu>, words: &str| {
        let e = result.err().expect(words);
        assert!(e.exit_code() == 3 && e.to_string().contains(words), "{e}");
    };
    says(Gpu::open_named("/nowhere/libcuda.so.1", 0), "no NVIDIA driver: /nowhere/libcuda.so.1");
    says(open(&["-DVERSION=11080"]).1, "too old: it is for CUDA 11.8, this program needs 12.0 or newer");
    says(open(&["-DcuGraphLaunch=cuOther"]).1, "has no cuGraphLaunch");
    says(open(&["-DDEVICES=0"]).1, "finds no GPU");
    let two = Library::new(&["-DDEVICES=2"]);
    says(Gpu::open_named(two.name(), 2), "no device cuda:2: this machine has cuda:0 to cuda:1");
    assert_eq!(Gpu::open_named(two.name(), 1).unwrap().name(), "Fake H101");
    let (_library, ampere) = open(&["-DMAJOR=8", "-DVERSION=12040"]);
    let ampere = ampere.unwrap();
    ampere.fits("sm_80").unwrap();
    let e = ampere.fits("sm_90a").unwrap_err();
    let words = "code for sm_90a; the device (Fake H100) is sm_80: golfc --target cpu,sm_80 makes code for it";
    assert!(e.to_string().contains(words), "{e}");
    assert_eq!(ampere.choose(&["sm_90a", "sm_80"]).unwrap(), 1);
    let (_library, hopper) = open(&[]);
    assert_eq!(hopper.unwrap().choose(&["sm_90a", "sm_80"]).unwrap(), 0);
    let e = ampere.load(&kernel("k", 0, 0, "0x1")).err().expect("old driver");
    assert!(e.to_string().contains("it is for CUDA 12.4, this program's code (PTX 8.6) needs 12.7"), "{e}");
}

#[test]
fn memory_comes_back_and_ends() {
    let (_library, gpu) = open(&["-DMEMORY=100000000"]);
    let gpu = gpu.unwrap();
    // More than the staging memory, so that copies are cut.
    let a = gpu.alloc(70_000_000).unwrap().expect("fits");
    let bytes: Vec<u8> = (0..69_000_000u32).map(|i| (i / 7) as u8).collect();
    gpu.upload(&a, 1000, &bytes).unwrap();
    let mut back = vec![1; 69_001_000];
    gpu.download(&a, 0, &mut back).unwrap();
    assert!(back[..1000].iter().all(|&b| b == 0) && back[1000..] == bytes);
    gpu.fill(&a, 2000, 10, 9).unwrap();
    let mut some = [0; 12];
    gpu.download(&a, 1999, &mut some).unwrap();
    assert_eq!(some, [bytes[999], 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, bytes[1010]]);
    assert!(gpu.alloc(40_000_000).unwrap().is_none());
    assert_eq!(gpu.memory().unwrap(), (30_000_000, 100_000_000));
    gpu.alloc(0).unwrap().expect("nothing is something");
}

/// args: values f32, order i32 \[n + 1\]. Adds `block` to the values; the last block run writes its place in the order.
macro_rules! steps {
    ($($name:ident $number:literal)*) => {$(
        unsafe extern "C" fn $name(block: u64, args: *const *mut u8, _: *mut u8) {
            // SAFETY: two arguments: one f32 per block, and a counter with room for four numbers behind it.
            unsafe {
                *(*args).cast::<f32>().add(block as usize) += block as f32;
                let order = (*args.add(1)).cast::<i32>();
                if block == 0 {
                    *order += 1;
                    *order.add(*order as usize) = $number;
                }
            }
        }
    )*};
}

steps! { one 1 two 2 three 3 four 4 }

unsafe extern "C" fn look(_: u64, args: *const *mut u8, _: *mut u8) {
    // SAFETY: one pointer with room for 128 bytes, one map.
    unsafe { std::ptr::copy_nonoverlapping(*args.add(1), *args, 128) }
}

#[test]
fn launches_graphs_and_maps_pass_what_was_meant() {
    let (_library, gpu) = open(&[]);
    let gpu = gpu.unwrap();
    let texts = [text("one", 2, 0, one), text("two", 2, 0, two), text("three", 2, 0, three), text("four", 2, 0, four)];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let modules = gpu.load_all(&texts, &mut |_, _| {}).unwrap();
    let (x, order) = (gpu.alloc(400).unwrap().unwrap(), gpu.alloc(20).unwrap().unwrap());
    let launch = |i: usize| Launch {
        function: modules[i].function(["one", "two", "three", "four"][i], 128, 100_000).unwrap(),
        blocks: 100,
        threads: 128,
        shared: 100_000,
        pointers: vec![x.address(), order.address()],
        maps: Vec::new(),
    };
    let read = |a: &Allocation| {
        let mut bytes = vec![0; a.bytes() as usize];
        gpu.download(a, 0, &mut bytes).unwrap();
        bytes
    };
    let time = gpu.time(|| gpu.launch(&launch(2))).unwrap();
    assert_eq!((time, read(&order)[4]), (0.5, 3));
    assert_eq!(bytemuck::pod_read_unaligned::<f32>(&read(&x)[99 * 4..]), 99.0);
    gpu.fill(&order, 0, 20, 0).unwrap();
    // 1 -> 2 -> 4 and 3 free: the fake runs what was added last as soon as it may.
    let four: Vec<Launch> = (0..4).map(launch).collect();
    let four: Vec<Work> = four.into_iter().map(Work::Kernel).collect();
    gpu.graph(&four, &[&[], &[0], &[], &[1]]).unwrap().launch().unwrap();
    let found: Vec<i32> = all(&read(&order));
    assert_eq!(found, [4, 3, 1, 2, 4]);

    let module = gpu.load(&text("look", 1, 1, look)).unwrap();
    let out = gpu.alloc(128).unwrap().unwrap();
    let map = TensorMap {
        arg: 0,
        offset: 32,
        dtype: DType::Bf16,
        dims: vec![512, 30, 7],
        strides: vec![1024, 32768],
        tile: vec![64, 16, 1],
        swizzle: 128,
    };
    let maps = vec![gpu.map(&map, x.address()).unwrap()];
    let function = module.function("look", 1, 0).unwrap();
    gpu.launch(&Launch { function, blocks: 1, threads: 1, shared: 0, pointers: vec![out.address()], maps }).unwrap();
    let bytes = read(&out);
    let words: Vec<i32> = all(&bytes[..16]);
    let longs: Vec<u64> = all(&bytes[16..96]);
    assert_eq!(words, [9, 3, 3, 2]);
    assert_eq!(longs, [x.address() + 32, 512, 30, 7, 0, 0, 1024, 32768, 0, 0]);
    let tile: Vec<u16> = all(&bytes[96..106]);
    assert_eq!(tile, [64, 16, 1, 0, 0]);
}

#[test]
fn bad_code_is_a_bug_that_says_where() {
    let (_library, gpu) = open(&["-DFAIL=\"two\""]);
    let gpu = gpu.unwrap();
    let e = gpu.load(&(text("one", 2, 0, one) + "syntax error")).err().expect("does not assemble").to_string();
    assert!(e.contains("a bug of golfc") && e.contains("line 3") && e.contains(".entry one"), "{e}");
    let module = gpu.load(&text("two", 2, 0, two)).unwrap();
    for (name, threads, shared, words) in [
        ("three", 1, 0, "not found"),
        ("two", 2048, 0, "registers allow 1024"),
        ("two", 32, 300_000, "a block may have 232448"),
    ] {
        let e = module.function(name, threads, shared).err().expect(words).to_string();
        assert!(e.contains(words) && e.contains(name), "{e}");
    }
    let x = gpu.alloc(64).unwrap().unwrap();
    let function = module.function("two", 1, 0).unwrap();
    let launch = Launch { function, blocks: 1, threads: 1, shared: 0, pointers: vec![x.address(); 2], maps: vec![] };
    gpu.launch(&launch).unwrap();
    let e = gpu.download(&x, 0, &mut [0; 8]).unwrap_err();
    assert!(
        e.exit_code() == 3 && e.to_string().contains("illegal memory access") && e.to_string().contains("GOLF_SYNC"),
        "{e}"
    );
}

/// Rounds to bf16 and takes its bits.
fn bf16(x: f32) -> [u8; 2] {
    half::bf16::from_f32(x).to_le_bytes()
}

/// Products with every order of factors, alone and in a graph, against sums of small integers, which are exact.
#[test]
fn products_are_the_librarys() {
    let (library, gpu) = open(&[]);
    let gpu = gpu.unwrap();
    let lt = Cublas::open_named(&["/nowhere/libcublasLt.so.13", library.name()]).unwrap();
    let (m, n, k, batch) = (3usize, 5, 4, 2);
    let (a, b) = (
        |i: usize, j: usize, t: usize| (i + 2 * j + t) as f32 - 3.0,
        |i: usize, j: usize, t: usize| (3 * i + t) as f32 - j as f32,
    );
    let workspace = gpu.alloc(1024).unwrap().unwrap();
    for case in 0..8 {
        let (a_inner, b_inner, accumulate) = (case & 1 == 0, case & 2 == 0, case & 4 != 0);
        // Pitches and distances of matrices leave gaps; factors begin after 8 elements.
        let factor = |inner: bool, along: usize, other: usize, dtype: DType| {
            let (pitch, rows) = if inner { (along + 1, other) } else { (other + 2, along) };
            Factor { dtype, offset: 8, inner, pitch: pitch as u64, batch: (pitch * rows + 3) as u64 }
        };
        let (fa, fb) = (factor(a_inner, k, m, DType::Bf16), factor(b_inner, k, n, DType::Bf16));
        let fd = factor(true, n, m, if accumulate { DType::F32 } else { DType::Bf16 });
        let at = |f: &Factor, along: usize, other: usize, t: usize| {
            let (x, y) = if f.inner { (along, other) } else { (other, along) };
            8 + t * f.batch as usize + y * f.pitch as usize + x
        };
        let memory = |f: &Factor| gpu.alloc(f.dtype.bytes() as u64 * (8 + 2 * f.batch)).unwrap().unwrap();
        let (ma, mb, md) = (memory(&fa), memory(&fb), memory(&fd));
        for t in 0..batch {
            for p in 0..k {
                (0..m).for_each(|i| gpu.upload(&ma, 2 * at(&fa, p, i, t) as u64, &bf16(a(i, p, t))).unwrap());
                (0..n).for_each(|j| gpu.upload(&mb, 2 * at(&fb, p, j, t) as u64, &bf16(b(p, j, t))).unwrap());
            }
        }
        let product = Product {
            m: m as u64,
            n: n as u64,
            k: k as u64,
            batch: batch as u64,
            a: fa,
            b: fb,
            d: fd,
            accumulate,
            workspace: 1024,
        };
        let places = [ma.address(), mb.address(), md.address(), workspace.address()];
        let work = || Work::Product("p".into(), Box::new(lt.product("p", &product, places).unwrap()));
        gpu.work(&work()).unwrap();
        // In a graph the second waits for the first; started once.
        gpu.graph(&[work(), work()], &[&[], &[0]]).unwrap().launch().unwrap();
        let mut bytes = vec![0; md.bytes() as usize];
        gpu.download(&md, 0, &mut bytes).unwrap();
        let found = |e: usize| match fd.dtype {
            DType::F32 => all::<f32>(&bytes)[e],
            _ => all::<half::bf16>(&bytes)[e].to_f32(),
        };
        for (t, i, j) in (0..batch * m * n).map(|x| (x / (m * n), x / n % m, x % n)) {
            let sum: f32 = (0..k).map(|p| a(i, p, t) * b(p, j, t)).sum();
            assert_eq!(found(at(&fd, j, i, t)), if accumulate { 3.0 * sum } else { sum }, "case {case}, {t} {i} {j}");
        }
        assert_eq!(found(8 + n), 0.0, "what lies between rows is left alone");
        let small = Product { workspace: 512, ..product };
        let why = lt.product("p", &small, places).err().expect("too little workspace").to_string();
        assert!(
            why.contains("cuBLASLt does not do p (3 x 5 x 4, 2 times)") && why.contains("compile without that line"),
            "{why}"
        );
    }
    let why = Cublas::open_named(&["/nowhere/libcublasLt.so.13"]).err().expect("not there");
    assert!(
        why.exit_code() == 3
            && why.to_string().contains("/nowhere/libcublasLt.so.13")
            && why.to_string().contains("--tuning"),
        "{why}"
    );
}

/// A dot product of two pieces of the toy's bias: checked when it is read, run in a graph, timed call by call.
#[test]
fn a_plan_gives_products_to_the_library() {
    let (library, gpu) = open(&[]);
    let gpu = gpu.unwrap().with_cublas(Cublas::open_named(&[library.name()]).unwrap());
    let mut code = toy::load(&Toy { gpu: true, ..Toy::default() }).unwrap();
    let factor = |dtype, offset, pitch| Factor { dtype, offset, inner: true, pitch, batch: 0 };
    let product = Product {
        m: 1,
        n: 1,
        k: 4,
        batch: 1,
        a: factor(DType::Bf16, 0, 4),
        b: factor(DType::Bf16, 8, 4),
        d: factor(DType::F32, 0, 1),
        accumulate: false,
        workspace: 1024,
    };
    let v = &mut code.program.variants[2];
    let place = |name: &str| v.state.iter().find(|b| b.name == name).unwrap().place;
    let (bias, count, scratch) =
        (place("bias"), place("average.swa.count"), Place { segment: Segment::Scratch, offset: 0 });
    let graph = v.graphs.iter().position(|g| g.name == "average.swa.finish").unwrap();
    let kernel = v.kernels.len();
    let same = v.kernels[0].clone();
    v.kernels.push(Kernel { symbol: "dot_cublaslt".into(), gpu: None, product: Some(product), ..same });
    let args = vec![bias, bias, count, scratch];
    v.graphs[graph].calls = vec![Call { kernel: kernel as u32, tasks: 1, args, after: vec![] }];
    crate::check::program(&code.program).unwrap();
    let breaks: [fn(&mut Product); 4] =
        [|p| p.a.pitch = 3, |p| p.workspace = 1 << 40, |p| p.b.offset = 1 << 40, |p| p.d.dtype = DType::I32];
    for change in breaks {
        let mut p = code.program.clone();
        change(p.variants[2].kernels[kernel].product.as_mut().unwrap());
        let why = crate::check::program(&p).unwrap_err().to_string();
        assert!(why.contains("dot_cublaslt: the sizes of a product do not fit"), "{why}");
    }
    let mut launcher = GpuLauncher::new(Arc::new(code), 2, gpu).unwrap();
    launcher.write(bias, &[1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 5.0, 6.0, 7.0, 8.0].map(bf16).concat()).unwrap();
    launcher.run(graph).unwrap();
    assert_eq!(all::<f32>(&launcher.read(count, 4).unwrap()), [70.0]);
    launcher.time_calls(true);
    launcher.run(graph).unwrap();
    assert_eq!((launcher.timings()[kernel].calls, launcher.timings()[kernel].nanos), (1, 500_000));
}
