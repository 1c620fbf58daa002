#!/usr/bin/env python3
"""Loss and gradients of a `probe` in bf16 against what the published program computes in bf16 (tests/golden/S1016h).

usage: golden.py GOLDEN_DIR PROBE.safetensors     golden.py --codes A.safetensors B.safetensors
Per tensor: relative L2 against forward_bf16, in units of `bf16_unit` of case.json (the published program's own bf16-to-f32 distance); at most 2. With --codes: how many codes of two packings of the same weights are equal. Sums of squares
have another order on another device, and a code that falls the other way changes later ones: at least 85% have to be the same (bf16 and f32 on one CPU: 90% to 99%), and no scale may differ. Needs numpy only.
"""
import json, struct, sys
import numpy as np


def load(path):
    data = open(path, "rb").read()
    (n,) = struct.unpack("<Q", data[:8])
    header, out = json.loads(data[8 : 8 + n]), {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        raw = data[8 + n + t["data_offsets"][0] : 8 + n + t["data_offsets"][1]]
        if t["dtype"] == "BF16":
            x = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            x = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2", "I32": "<i4", "I8": "i1"}[t["dtype"]])
        out[name] = x.astype(np.float64).reshape(t["shape"])
    return out


def codes(a, b):
    a, b = load(a), load(b)
    failed = set(a) != set(b)
    for name in a:
        same = float(np.mean(a[name] == b[name]))
        wrong = name.startswith("q.") and same < 0.85 or name.startswith("scale.") and same < 1
        if wrong or name.startswith("q.") and same < 1:
            print(f"{'FAILED ' * wrong}{name}: {same:.4f} equal")
        failed |= wrong
    print(f"{len(a)} tensors {'FAILED' if failed else 'right'}")
    sys.exit(failed)


def main():
    if sys.argv[1] == "--codes":
        codes(*sys.argv[2:4])
    golden, probe = sys.argv[1:3]
    case = json.load(open(f"{golden}/case.json"))
    units, rule = case["bf16_unit"], case["recommended_tolerances"]["bf16"]
    want, got = load(f"{golden}/forward_bf16.safetensors"), load(probe)
    failed, worst = 0, (0.0, "")
    loss = abs(float(got["loss"].reshape(())) - float(want["loss"].reshape(())))
    nll = float(np.sqrt(np.mean((got["nll"] - want["nll"]) ** 2)))
    print(f"loss {float(got['loss'].reshape(())):.6f}, published {float(want['loss'].reshape(())):.6f}, off {loss:.5f} (allowed {rule['loss_abs']})")
    print(f"nll rms off {nll:.5f} (allowed {rule['nll_rms']})")
    failed += not loss <= rule["loss_abs"]
    failed += not nll <= rule["nll_rms"]
    count = 2
    for name, w in want.items():
        if not name.startswith("grad.") or name[5:] in case["no_gradient_tensors"]:
            continue
        count += 1
        g = got.get(name)
        unit = units[name[5:]] if name[5:] in units else units[name]
        size = np.linalg.norm(w)
        off = float("nan") if g is None else float(np.linalg.norm(g.reshape(w.shape) - w) / size / unit)
        if not off <= 2:
            failed += 1
            print(f"FAILED {name}: {off:.2f} units")
        if not off <= worst[0]:
            worst = (off, name)
    print(f"worst gradient {worst[1]}: {worst[0]:.2f} units (allowed 2)")
    print(f"{count - failed} passed, {failed} failed")
    sys.exit(failed > 0)


main()
