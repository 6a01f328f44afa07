/**
 * A kernel that keeps a GPU busy, launched outside the library through its handles, and GPU detection.
 */
import type { CudaStream } from "effect-cuda/CudaStream"
import * as NativeRuntime from "effect-cuda/NativeRuntime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import koffi from "koffi"
import { load } from "../../src/cuda/foreignLibrary.ts"
import "./deepStack.ts"
import { Busy, NativeCode } from "./Rig.ts"
import type { Rig } from "./Rig.ts"

const spinPtx = `
.version 7.0
.target sm_70
.address_size 64
.visible .entry spin(.param .u64 nanos)
{
  .reg .pred %p;
  .reg .b64 %r<5>;
  ld.param.u64 %r1, [nanos];
  mov.u64 %r2, %globaltimer;
again:
  mov.u64 %r3, %globaltimer;
  sub.s64 %r4, %r3, %r2;
  setp.lt.u64 %p, %r4, %r1;
  @%p bra again;
  ret;
}
.visible .entry fault()
{
  .reg .b64 %r<2>;
  .reg .b32 %v;
  mov.u64 %r1, 64;
  mov.u32 %v, 1;
  st.global.u32 [%r1], %v;
  ret;
}
`

interface Driver {
  readonly deviceCount: number
  readonly native: NativeCode["Service"]
  readonly launch: (device: number, kernel: "spin" | "fault", stream: number, nanos: bigint) => void
}

const open = (): Driver | undefined => {
  try {
    return bind()
  } catch {
    return undefined
  }
}

const bind = (): Driver | undefined => {
  const library = koffi.load("libcuda.so.1")
  const call = (name: string, ...types: Array<string>) => {
    const bound = library.func(name, "int", types)
    return (...values: Array<unknown>) => {
      const status: number = bound(...values)
      if (status !== 0) throw new Error(`${name} answered ${status}`)
    }
  }
  const fill = library.func("cuMemsetD8Async", "int", ["uintptr_t", "uint8_t", "size_t", "uintptr_t"])
  const allocate = library.func("cuMemAllocAsync", "int", ["void *", "size_t", "uintptr_t"])
  const out = new BigUint64Array(1)
  const count = new Int32Array(1)
  call("cuInit", "uint32_t")(0)
  call("cuDeviceGetCount", "void *")(count)
  const retain = call("cuDevicePrimaryCtxRetain", "void *", "int")
  const push = call("cuCtxPushCurrent_v2", "uintptr_t")
  const pop = call("cuCtxPopCurrent_v2", "void *")
  const loadModule = call("cuModuleLoadData", "void *", "void *")
  const getFunction = call("cuModuleGetFunction", "void *", "uintptr_t", "str")
  const launchKernel = call(
    "cuLaunchKernel",
    ...Array<string>(1).fill("uintptr_t"),
    ...Array<string>(7).fill("uint32_t"),
    "uintptr_t",
    "void *",
    "void *"
  )
  const modules = new Map<number, { readonly context: number; readonly spin: number; readonly fault: number }>()
  const kernels = (device: number) => {
    const known = modules.get(device)
    if (known !== undefined) return known
    retain(out, device)
    const context = Number(out[0])
    push(context)
    loadModule(out, Buffer.from(`${spinPtx}\0`))
    const module = Number(out[0])
    getFunction(out, module, "spin")
    const spin = Number(out[0])
    getFunction(out, module, "fault")
    const made = { context, spin, fault: Number(out[0]) }
    pop(out)
    modules.set(device, made)
    return made
  }
  const nanosValue = new BigUint64Array(1)
  const parameters = new BigUint64Array([koffi.address(nanosValue)])
  return {
    deviceCount: count[0]!,
    native: {
      fill: (stream, address, value, byteLength) => fill(address, value, byteLength, stream),
      allocate: (stream, byteLength) => allocate(out, byteLength, stream)
    },
    launch: (device, kernel, stream, nanos) => {
      const known = kernels(device)
      nanosValue[0] = nanos
      push(known.context)
      launchKernel(known[kernel], 1, 1, 1, 1, 1, 1, 0, stream, kernel === "spin" ? parameters : null, null)
      pop(out)
    }
  }
}

/** The machine's GPUs, or undefined if there is none. */
export const gpu: Driver | undefined = open()

/** Enqueues a kernel that reads out of bounds. */
export const launchFault = (stream: CudaStream): Effect.Effect<void> =>
  Effect.sync(() => gpu!.launch(stream.deviceIndex, "fault", stream.handle, 0n))

const blas = gpu === undefined ? undefined : await load({
  title: "cuBLASLt",
  path: process.env["EFFECT_CUDA_CUBLASLT"],
  files: ["libcublasLt.so.13", "libcublasLt.so.12"],
  wheels: ["cublas"],
  needs: []
})

const nccl = gpu === undefined ? undefined : await load({
  title: "NCCL",
  path: process.env["EFFECT_CUDA_NCCL"],
  files: ["libnccl.so.2"],
  wheels: ["nccl"],
  needs: []
})

/** The native runtime on this machine's GPUs. */
export const nativeRig: Rig = {
  name: "native",
  deviceCount: gpu?.deviceCount ?? 1,
  hasBlas: blas?._tag === "Loaded",
  hasNccl: nccl?._tag === "Loaded",
  layer: Layer.mergeAll(
    NativeRuntime.layer(),
    Layer.succeed(Busy, {
      enqueue: (stream, millis) =>
        Effect.sync(() => gpu!.launch(stream.deviceIndex, "spin", stream.handle, BigInt(Math.round(millis * 1e6))))
    }),
    Layer.sync(NativeCode, () => gpu!.native)
  )
}
