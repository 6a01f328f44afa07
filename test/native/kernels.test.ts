/**
 * Modules and kernels on the stub driver: the exact calls and bytes, rejected images, and that code is neither loaded nor
 * unloaded while the driver would block the thread for it.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaKernel from "effect-cuda/CudaKernel"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaModule from "effect-cuda/CudaModule"
import * as CudaParameter from "effect-cuda/CudaParameter"
import type * as CudaProgram from "effect-cuda/CudaProgram"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { deviceAttributes, kernelAttributes } from "../../src/cuda/flags.ts"
import { failsWith, refuses } from "../support/assertions.ts"
import { brokenProgram, every, offsetsOf, program, signatures } from "../support/kernels.ts"
import { assertReleased, copyStub, logged, onStub, openStub, pause, until } from "../support/stubDriver.ts"
import type { StubDriver, StubOptions } from "../support/stubDriver.ts"
import { begin, ended, isPending, openRuntime } from "../support/waits.ts"

const stub = openStub()

/** The library reports what a GPU does. */
const prepareDevice = (driver: StubDriver): void => {
  const limits = { maxSharedMemoryPerBlockOptin: 227 * 1024, maxBlockDimX: 1024, maxBlockDimY: 1024, maxBlockDimZ: 64 }
  for (const [name, value] of Object.entries(limits)) {
    driver.setAttribute(deviceAttributes[name as keyof typeof limits], value)
  }
}

const run = <A, E>(effect: Effect.Effect<A, E, CudaRuntime | Scope.Scope>, options: StubOptions = {}) =>
  onStub(stub, effect, {
    ...options,
    prepare: (driver) => {
      prepareDevice(driver)
      options.prepare?.(driver)
    }
  })

const loaded = (options?: CudaModule.LoadOptions) => Effect.flatMap(program, (made) => CudaModule.load(made, options))

const kernel = <Name extends keyof typeof signatures>(name: Name, options?: CudaModule.LoadOptions) =>
  Effect.flatMap(loaded(options), (module) => CudaKernel.get(module, name, signatures[name]))

const one = { grid: 1, block: 1 }

const hexOf = (bytes: ArrayBuffer): string => Buffer.from(bytes).toString("hex")
const address = (value: number): string => hexOf(BigUint64Array.of(BigInt(value)).buffer)

/** The arguments of a function's last call, as the driver received them. */
const lastLaunch = () => stub.calls("cuLaunchKernelEx").at(-1)!.args

describe("loading a module", () => {
  it.live("loads the image off the JS thread with a log buffer, then probes the driver for problems", () =>
    run(Effect.gen(function*() {
      const made = yield* program
      stub.clear()
      const module = yield* CudaModule.load(made)
      const [load, probe, ...rest] = stub.calls()
      assert.deepStrictEqual(rest, [])
      assert.deepStrictEqual([load!.name, load!.main, load!.context], ["cuLibraryLoadData", false, 0])
      assert.deepStrictEqual(load!.args, [module.handle, made.image.byteLength - 1, 5, 6])
      assert.deepStrictEqual([probe!.name, ...probe!.args], ["cuLibraryGetKernel", module.handle, " "])
      assert.deepStrictEqual([probe!.status, probe!.main], [500, true])
      assert.strictEqual(stub.live.libraries, 1)
    })))

  it.live("is undone by its scope", () =>
    run(Effect.gen(function*() {
      const module = yield* Effect.scoped(loaded())
      assert.deepStrictEqual(stub.calls("cuLibraryUnload").map(({ args }) => args), [[module.handle]])
    })))

  it.live("copies the image: later changes to it have no effect", () =>
    run(Effect.gen(function*() {
      const runtime = yield* CudaRuntime
      const image = new Uint8Array(Buffer.from(".version 7.0\n.visible .entry kept() { ret; }"))
      stub.holdsLoads = true
      const options = { idleTimeout: Duration.zero }
      const loading = yield* begin(runtime.moduleLoad(image, options))
      image.fill(0)
      stub.holdsLoads = false
      const module = yield* Fiber.join(loading)
      yield* runtime.kernelGet(module, "kept", [], 0)
      yield* runtime.moduleUnload(module)
    })))

  it.live("fails for PTX that does not compile, with the compiler's log", () =>
    run(Effect.gen(function*() {
      const error = yield* Effect.flip(Effect.flatMap(brokenProgram, (made) => CudaModule.load(made)))
      assert.deepStrictEqual([error.reason._tag, error.operation], ["InvalidPtx", "CudaModule.load"])
      assert.strictEqual(error.log, "ptxas application ptx input, line 3; fatal : broken")
      assert.include(error.message, "cuLibraryGetKernel returned CUDA_ERROR_INVALID_PTX (218)")
      assert.include(error.message, "line 3; fatal : broken")
      yield* until("its library is gone", () => stub.live.libraries === 0)
    })))

  it.live("fails for an invalid image, and for another architecture", () =>
    run(Effect.gen(function*() {
      const runtime = yield* CudaRuntime
      const load = (text: string) => runtime.moduleLoad(Buffer.from(text), { idleTimeout: Duration.zero })
      yield* failsWith(load("garbage"), "InvalidImage")
      yield* failsWith(load(".version 7.0\n.target sm_999"), "NoBinaryForGpu")
      yield* refuses(load(""), "image")
      yield* until("their libraries are gone", () => stub.live.libraries === 0)
    })))

  for (const [name, status] of [["cuLibraryLoadData", 2], ["cuLibraryGetKernel", 999]] as const) {
    it.live(`fails with the status ${status} of ${name}`, () =>
      run(Effect.gen(function*() {
        stub.fail(name, status)
        const error = yield* Effect.flip(loaded())
        assert.deepStrictEqual([error.call, "code" in error.reason && error.reason.code], [name, status])
        yield* until("nothing is left", () => stub.live.libraries === 0)
      })))
  }

  it.live("ends at once when interrupted, and unloads its result", () =>
    run(Effect.gen(function*() {
      stub.holdsLoads = true
      const fiber = yield* begin(loaded())
      yield* Fiber.interrupt(fiber)
      assert.strictEqual((yield* (yield* CudaRuntime).liveResources).modules, 0)
      stub.holdsLoads = false
      yield* until("the library is unloaded", () => stub.calls("cuLibraryUnload").length === 1)
      assert.strictEqual(stub.live.libraries, 0)
    })))

  it.live("is awaited when the runtime is released, and fails", () =>
    Effect.gen(function*() {
      stub.reset()
      const { close, use } = yield* openRuntime(stub)
      stub.holdsLoads = true
      const fiber = yield* begin(use(loaded()))
      const closing = yield* begin(close)
      assert.isTrue(isPending(closing))
      stub.holdsLoads = false
      yield* Fiber.join(closing)
      const exit = yield* ended(fiber)
      assert.isTrue(Exit.isFailure(exit))
      assertReleased(stub)
    }))

  it.live("keeps its modules until the runtime's release, if their scopes stay open", () =>
    Effect.gen(function*() {
      stub.reset()
      const { close, runtime, use } = yield* openRuntime(stub)
      const scope = yield* Scope.make()
      const made = yield* program
      yield* Scope.provide(use(CudaModule.load(made)), scope)
      assert.strictEqual((yield* runtime.liveResources).modules, 1)
      yield* close
      assertReleased(stub)
    }))

  it.live("rejects an idleTimeout that is not a duration", () =>
    run(refuses(loaded({ idleTimeout: -1 }), "idleTimeout")))
})

describe("getting a kernel", () => {
  it.live("reads its parameters, loads its code in the device's context, and reads the limits, once", () =>
    run(Effect.gen(function*() {
      const module = yield* loaded()
      yield* CudaStream.make()
      stub.clear()
      const put = yield* CudaKernel.get(module, "put", signatures.put)
      const [context] = stub.calls("cuCtxPushCurrent_v2")[0]!.args
      const attribute = (
        name: keyof typeof kernelAttributes,
        value: number
      ) => ["cuKernelGetAttribute", value, kernelAttributes[name], put.handle, 40]
      assert.deepStrictEqual(stub.lines().filter(([name]) => !/^cu(DeviceGet|Stream)/.test(String(name))), [
        ["cuLibraryGetKernel", put.handle, module.handle, "put"],
        ["cuCtxPushCurrent_v2", context!],
        ["cuKernelGetFunction", put.handle, put.handle],
        ["cuKernelGetParamInfo", put.handle, 0, 0, 8],
        ["cuKernelGetParamInfo", put.handle, 1, 8, 4],
        ["cuKernelGetParamInfo", put.handle, 2],
        ["cuCtxPopCurrent_v2", context!],
        attribute("maxThreadsPerBlock", 1024),
        attribute("sharedSizeBytes", 0),
        attribute("maxDynamicSharedSizeBytes", 48 * 1024)
      ])
      stub.clear()
      const again = yield* CudaKernel.get(module, "put", signatures.put)
      assert.strictEqual(again.handle, put.handle)
      assert.deepStrictEqual(stub.lines(), [])
    })))

  it.live("uses the lowered name of a name expression", () =>
    run(Effect.gen(function*() {
      const made = yield* program
      const lowered: CudaProgram.CudaProgram = Object.create(made, { loweredName: { value: () => "put" } })
      const put = yield* CudaKernel.get(yield* CudaModule.load(lowered), "put<unsigned>", signatures.put)
      assert.strictEqual(put.name, "put<unsigned>")
      assert.strictEqual(stub.calls("cuLibraryGetKernel").at(-1)!.args.at(-1), "put")
    })))

  it.live("skips the comparison where the driver does not report parameters", () => {
    const old = copyStub(["cuKernelGetParamInfo=stub_hidden"])
    return onStub(
      old,
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const put = yield* CudaKernel.get(yield* loaded(), "put", [CudaParameter.u64, CudaParameter.u32])
        yield* CudaKernel.launch(put, one, [1, 2], stream)
        assert.lengthOf(old.calls("cuLaunchKernelEx"), 1)
      }),
      { prepare: prepareDevice }
    )
  })
})

describe("a launch", () => {
  it.live("is one call, with its arguments as bytes", () =>
    run(Effect.gen(function*() {
      const add = yield* kernel("add")
      const stream = yield* CudaStream.make()
      const [to, from] = yield* Effect.all([CudaMemory.allocate(64), CudaMemory.allocate(64)])
      stub.clear()
      const config = { grid: [2, 3, 4], block: [5, 6, 7], sharedBytes: 100 } as const
      yield* CudaKernel.launch(add, config, [to, CudaMemory.slice(from, 8), 1000], stream)
      assert.deepStrictEqual(stub.lines(), [[
        "cuLaunchKernelEx",
        add.handle,
        2,
        3,
        4,
        5,
        6,
        7,
        100,
        stream.handle,
        address(to.address),
        address(from.address + 8),
        hexOf(Uint32Array.of(1000).buffer)
      ]])
      assert.strictEqual(stub.calls()[0]!.context, 0)
      yield* CudaKernel.launch(add, one, [from, to, 1], stream)
      assert.deepStrictEqual(lastLaunch().slice(9), [
        address(from.address),
        address(to.address),
        hexOf(Uint32Array.of(1).buffer)
      ])
    })))

  it.live("encodes every kind of argument", () =>
    run(Effect.gen(function*() {
      const module = yield* loaded()
      const many = yield* CudaKernel.get(module, "every", every)
      const stream = yield* CudaStream.make()
      const out = yield* CudaMemory.allocate(64)
      const tagged = { tag: 7, at: { x: 1, y: -2 }, to: CudaMemory.slice(out, 8), last: 9 }
      const info = stub.calls("cuKernelGetParamInfo").filter(({ status }) => status === 0)
      assert.deepStrictEqual(info.map(({ args }) => args[2]), [...offsetsOf(every)])
      yield* CudaKernel.launch(many, one, [
        out,
        1,
        -2,
        -3,
        4,
        -5,
        65504,
        2 ** -133,
        8,
        true,
        -9,
        0.5,
        10,
        2 ** 53 - 1,
        -0.5,
        11,
        tagged,
        12,
        { x: 1, y: 2, z: 3, w: 4 },
        -1,
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        13,
        [tagged, { ...tagged, to: null }],
        null,
        14,
        [1, 2],
        NaN,
        -Infinity,
        [null, out],
        -1n,
        false
      ], stream)
      const bytes = lastLaunch().slice(9)
      const struct = (to: number) =>
        `07${"00".repeat(7)}000000000000f03f000000c0${"00".repeat(4)}${to === 0 ? "00".repeat(8) : address(to)}` +
        `0900${"00".repeat(6)}`
      assert.deepStrictEqual(bytes, [
        address(out.address),
        "01",
        "feffffffffffffff",
        "fd",
        "0400",
        "fbff",
        "ff7b",
        "0100",
        "08000000",
        "01",
        "f7ffffff",
        "0000003f",
        "0a",
        "ffffffffffff1f00",
        "000000000000e0bf",
        "0b",
        struct(out.address + 8),
        "0c",
        "0000803f000000400000404000008040",
        "ffff",
        "010203",
        "01000200030004000500",
        "0d",
        struct(out.address + 8) + struct(0),
        "00".repeat(8),
        "0e",
        "000000000000f03f0000000000000040",
        "0000c07f",
        "80ff",
        "00".repeat(8) + address(out.address),
        "ffffffffffffffff",
        "00"
      ])
    })))

  it.live("on a default stream runs in its context", () =>
    run(Effect.gen(function*() {
      const put = yield* kernel("put")
      const to = yield* CudaMemory.allocate(4)
      const stream = yield* CudaStream.defaultStream()
      stub.clear()
      yield* CudaKernel.launch(put, one, [to, 1], stream)
      assert.deepStrictEqual(stub.lines().map(([name]) => name), [
        "cuCtxPushCurrent_v2",
        "cuLaunchKernelEx",
        "cuCtxPopCurrent_v2"
      ])
      stub.fail("cuLaunchKernelEx", 999)
      const error = yield* Effect.flip(CudaKernel.launch(put, one, [to, 1], stream))
      assert.strictEqual(error.call, "cuLaunchKernelEx")
    })))

  it.live("passes cluster, cooperative and programmatic as attributes", () =>
    run(Effect.gen(function*() {
      const put = yield* kernel("put")
      const stream = yield* CudaStream.make()
      const to = yield* CudaMemory.allocate(4)
      const bytes = [address(to.address), hexOf(Uint32Array.of(1).buffer)]
      const launched = (config: CudaKernel.LaunchConfig) =>
        Effect.map(CudaKernel.launch(put, config, [to, 1], stream), () => lastLaunch())
      const sizes = [put.handle, 8, 2, 1, 32, 1, 1, 64, stream.handle, ...bytes]
      const config = { grid: [8, 2], block: 32, sharedBytes: 64 } as const
      assert.deepStrictEqual(yield* launched({ ...config, cooperative: true }), [2, 1, ...sizes])
      assert.deepStrictEqual(yield* launched({ ...config, programmatic: true }), [6, 1, ...sizes])
      assert.deepStrictEqual(yield* launched({ ...config, cluster: [4, 2] }), [4, 4, 2, 1, ...sizes])
      const all = { ...config, cluster: 2, cooperative: true, programmatic: true }
      assert.deepStrictEqual(yield* launched(all), [2, 1, 6, 1, 4, 2, 1, 1, ...sizes])
    })))

  it.live("rejects features that the device lacks", () =>
    run(
      Effect.gen(function*() {
        const nothing = yield* kernel("nothing")
        yield* refuses(CudaKernel.launch(nothing, { ...one, cluster: 1 }, []), "cluster")
        yield* refuses(CudaKernel.launch(nothing, { ...one, cooperative: true }, []), "cooperative")
        yield* refuses(CudaKernel.launch(nothing, { ...one, programmatic: true }, []), "programmatic")
      }),
      {
        prepare: (driver) => {
          for (const name of ["clusterLaunch", "cooperativeLaunch"] as const) {
            driver.setAttribute(deviceAttributes[name], 0)
          }
          driver.setAttribute(deviceAttributes.computeCapabilityMajor, 8)
        }
      }
    ))

  it.live("rejects pinned memory where kernels cannot reach it", () =>
    run(
      Effect.gen(function*() {
        const put = yield* kernel("put")
        const host = yield* CudaMemory.allocateHost(4)
        yield* refuses(CudaKernel.launch(put, one, [host, 1]), "arguments[0]")
      }),
      { prepare: (driver) => driver.setAttribute(deviceAttributes.canUseHostPointerForRegisteredMem, 0) }
    ))

  it.live("opts in to more shared memory once, up to the maximum", () =>
    run(Effect.gen(function*() {
      const sizes = yield* kernel("sizes")
      const stream = yield* CudaStream.make()
      const to = yield* CudaMemory.allocate(64)
      const launch = (sharedBytes: number) => CudaKernel.launch(sizes, { ...one, sharedBytes }, [to], stream)
      yield* launch(48 * 1024)
      assert.lengthOf(stub.calls("cuKernelSetAttribute"), 0)
      stub.fail("cuKernelSetAttribute", 1)
      yield* failsWith(launch(100 * 1024), "InvalidValue")
      yield* launch(100 * 1024)
      yield* launch(227 * 1024)
      assert.deepStrictEqual(stub.calls("cuKernelSetAttribute").map(({ args }) => args), [
        [8, 227 * 1024, sizes.handle, 40],
        [8, 227 * 1024, sizes.handle, 40]
      ])
    })))

  it.live("of a kernel not yet on the device loads it there", () =>
    run(
      Effect.gen(function*() {
        const put = yield* kernel("put")
        const stream = yield* CudaStream.make({ device: 1 })
        const to = yield* CudaMemory.allocate(4, { device: 1 })
        yield* CudaKernel.launch(put, one, [to, 1], stream)
        yield* CudaKernel.launch(put, one, [to, 1], stream)
        const contexts = stub.calls("cuKernelGetFunction").map(({ context }) => context)
        assert.lengthOf(new Set(contexts), 2)
        assert.lengthOf(contexts, 2)
      }),
      { prepare: () => void (stub.devices = 2) }
    ))

  it.live("keeps the memory of its arguments until it has run", () =>
    run(Effect.gen(function*() {
      const add = yield* kernel("add")
      const stream = yield* CudaStream.make()
      stub.pending = "kernels"
      yield* Effect.scoped(Effect.gen(function*() {
        const [to, host] = [yield* CudaMemory.allocate(4), yield* CudaMemory.allocateHost(4)]
        yield* CudaKernel.launch(add, one, [to, host, 1], stream)
      }))
      assert.isUndefined(stub.misuse)
      assert.strictEqual(stub.live.allocations, 1)
      stub.letGo()
      yield* until("the memory is free", () => stub.live.allocations === 0)
    })))

  it.live("is ordered with other uses of ordered buffers, after reads only where it writes", () =>
    run(Effect.gen(function*() {
      const add = yield* kernel("add")
      const [first, second] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
      const ordered = CudaMemory.allocate(4, { ordered: true })
      const [to, other, from] = yield* Effect.all([ordered, ordered, ordered])
      const waits = (effect: Effect.Effect<void, unknown>) =>
        Effect.gen(function*() {
          stub.clear()
          yield* effect
          return stub.calls("cuStreamWaitEvent").map(({ args }) => args[0])
        })
      assert.deepStrictEqual(yield* waits(CudaKernel.launch(add, one, [to, from, 1], first)), [])
      assert.deepStrictEqual(yield* waits(CudaKernel.launch(add, one, [other, from, 1], second)), [])
      assert.deepStrictEqual(yield* waits(CudaKernel.launch(add, one, [from, other, 1], first)), [first.handle])
      assert.deepStrictEqual(yield* waits(CudaKernel.launch(add, one, [other, from, 1], second)), [second.handle])
    })))

  it.live("reports the launch when the driver rejects it", () =>
    run(Effect.gen(function*() {
      const put = yield* kernel("put")
      const stream = yield* CudaStream.make()
      const to = yield* CudaMemory.allocate(4)
      stub.fail("cuLaunchKernelEx", 701)
      const error = yield* Effect.flip(CudaKernel.launch(put, { grid: [2, 3], block: 64 }, [to, 1], stream))
      assert.strictEqual(error.reason._tag, "LaunchOutOfResources")
      assert.include(error.message, `kernel put on ${stream.ref}, grid 2×3×1, block 64×1×1, 0 bytes of shared memory`)
      assert.strictEqual(error.deviceIndex, 0)
    })))
})

describe("occupancy and attributes", () => {
  it.live("are queried in the device's context", () =>
    run(Effect.gen(function*() {
      const put = yield* kernel("put")
      stub.clear()
      assert.strictEqual(yield* CudaKernel.activeBlocks(put, { block: 256, sharedBytes: 64 }), 8)
      assert.deepStrictEqual(yield* CudaKernel.bestBlock(put, { sharedBytes: 32, maxThreads: 500 }), {
        block: 500,
        minGrid: 264
      })
      const config = { grid: 8, block: 32, cluster: 4, sharedBytes: 16 }
      assert.strictEqual(yield* CudaKernel.activeClusters(put, config), 66)
      assert.strictEqual(yield* CudaKernel.maxClusterSize(put, config), 8)
      const calls = stub.lines().filter(([name]) => /Occupancy/.test(String(name)))
      const shape = [8, 1, 1, 32, 1, 1, 16, 4, 4, 1, 1]
      assert.deepStrictEqual(calls, [
        ["cuOccupancyMaxActiveBlocksPerMultiprocessor", 8, put.handle, 256, 64],
        ["cuOccupancyMaxPotentialBlockSize", 264, 500, put.handle, 32, 500],
        ["cuOccupancyMaxActiveClusters", 66, put.handle, ...shape],
        ["cuOccupancyMaxPotentialClusterSize", 8, put.handle, ...shape.slice(0, 7)]
      ])
      assert.strictEqual(yield* CudaKernel.attribute(put, "ptxVersion"), 105)
      yield* CudaKernel.setAttribute(put, "nonPortableClusterSizeAllowed", 1)
      assert.deepStrictEqual(stub.lines().slice(-2), [
        ["cuKernelGetAttribute", 105, 5, put.handle, 40],
        ["cuKernelSetAttribute", 14, 1, put.handle, 40]
      ])
    })))
})

describe("code is loaded and unloaded while the device is idle", () => {
  /** A kernel that another fiber gets while a stream is busy. */
  const asking = (options?: CudaModule.LoadOptions) =>
    Effect.gen(function*() {
      const module = yield* loaded(options)
      const stream = yield* CudaStream.make()
      stub.work(stream)
      const fiber = yield* begin(CudaKernel.get(module, "put", signatures.put))
      return { fiber, module, stream }
    })

  it.live("getting a kernel waits for that without blocking the thread", () =>
    run(Effect.gen(function*() {
      const { fiber, stream } = yield* asking()
      assert.isTrue(isPending(fiber))
      assert.lengthOf(stub.calls("cuKernelGetFunction"), 0)
      stub.finish(stream)
      yield* Fiber.join(fiber)
      assert.strictEqual(stub.blocked, 0)
    })))

  it.live("work enqueued meanwhile is awaited too", () =>
    run(Effect.gen(function*() {
      const { fiber, stream } = yield* asking({ idleTimeout: Duration.infinity })
      const other = yield* CudaStream.make()
      stub.work(other)
      stub.finish(stream)
      yield* pause(10)
      assert.isTrue(isPending(fiber))
      stub.finish(other)
      yield* Fiber.join(fiber)
      assert.strictEqual(stub.blocked, 0)
    })))

  it.live("loads after the module's idleTimeout, busy or not", () =>
    run(Effect.gen(function*() {
      const { fiber, stream } = yield* asking({ idleTimeout: 20 })
      yield* Fiber.join(fiber)
      assert.strictEqual(stub.blocked, 1)
      stub.finish(stream)
    })))

  it.live("loads at once with an idleTimeout of zero", () =>
    run(Effect.gen(function*() {
      const { fiber, stream } = yield* asking({ idleTimeout: 0 })
      assert.isFalse(isPending(fiber))
      assert.strictEqual(stub.blocked, 1)
      stub.finish(stream)
    })))

  it.live("another busy device is not waited for", () =>
    run(
      Effect.gen(function*() {
        const module = yield* loaded()
        const stream = yield* CudaStream.make({ device: 1 })
        stub.work(stream)
        yield* CudaKernel.get(module, "put", signatures.put)
        assert.strictEqual(stub.blocked, 0)
        stub.finish(stream)
      }),
      { prepare: () => void (stub.devices = 2) }
    ))

  it.live("memory releases count as work", () =>
    run(Effect.gen(function*() {
      const module = yield* loaded()
      stub.pending = "memory"
      const allocating = yield* begin(CudaMemory.allocate(64).pipe(Effect.scoped))
      stub.finishAll()
      yield* ended(allocating)
      const fiber = yield* begin(CudaKernel.get(module, "put", signatures.put))
      assert.isTrue(isPending(fiber))
      stub.letGo()
      yield* Fiber.join(fiber)
      assert.strictEqual(stub.blocked, 0)
    })))

  it.live("interrupting the wait leaves nothing behind", () =>
    run(Effect.gen(function*() {
      const { fiber, stream } = yield* asking()
      yield* Fiber.interrupt(fiber)
      assert.strictEqual((yield* (yield* CudaRuntime).liveResources).waits, 0)
      stub.finish(stream)
      yield* pause(5)
      assert.lengthOf(stub.calls("cuKernelGetFunction"), 0)
    })))

  it.live("a module released during the wait is rejected", () =>
    run(Effect.gen(function*() {
      const scope = yield* Scope.make()
      const module = yield* Scope.provide(loaded(), scope)
      const stream = yield* CudaStream.make()
      stub.work(stream)
      const fiber = yield* begin(CudaKernel.get(module, "put", signatures.put))
      yield* Scope.close(scope, Exit.void)
      stub.finish(stream)
      yield* failsWith(Fiber.join(fiber), "ResourceReleased")
      yield* until("it is unloaded", () => stub.live.libraries === 0)
      assert.strictEqual(stub.blocked, 0)
    })))

  it.live("a fault during the wait is the failure", () =>
    logged(run(
      Effect.gen(function*() {
        const { fiber } = yield* asking({ idleTimeout: Duration.infinity })
        stub.fault = 719
        yield* failsWith(Fiber.join(fiber), "LaunchFailed")
        stub.finishAll()
      })
    )))

  it.live("a global variable is looked up while the device is idle", () =>
    run(Effect.gen(function*() {
      const module = yield* loaded()
      const stream = yield* CudaStream.make()
      stub.work(stream)
      const fiber = yield* begin(CudaModule.global(module, "counter"))
      assert.isTrue(isPending(fiber))
      stub.finish(stream)
      const counter = yield* Fiber.join(fiber)
      assert.deepStrictEqual(stub.calls("cuLibraryGetGlobal").map(({ args }) => args), [
        [counter.address, 4, module.handle, "counter"]
      ])
      assert.strictEqual(stub.blocked, 0)
      yield* CudaMemory.fill(counter, 0, stream)
    })))

  it.live("a module released while the device is busy is unloaded later", () =>
    run(Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      yield* Effect.scoped(Effect.gen(function*() {
        yield* loaded()
        stub.work(stream)
      }))
      assert.strictEqual((yield* (yield* CudaRuntime).liveResources).modules, 0)
      assert.lengthOf(stub.calls("cuLibraryUnload"), 0)
      stub.finish(stream)
      yield* until("it is unloaded", () => stub.live.libraries === 0)
      assert.strictEqual(stub.blocked, 0)
    })))

  it.live("and at the latest with the runtime, once its streams are drained", () =>
    Effect.gen(function*() {
      stub.reset()
      const { close, use } = yield* openRuntime(stub)
      const stream = yield* use(CudaStream.make())
      yield* Effect.scoped(use(Effect.scoped(Effect.gen(function*() {
        yield* loaded()
        stub.work(stream)
      }))))
      assert.strictEqual(stub.live.libraries, 1)
      stub.finish(stream)
      yield* close
      assertReleased(stub)
      assert.strictEqual(stub.blocked, 0)
    }))

  it.live("a failed later unload is a warning", () =>
    Effect.gen(function*() {
      const busy = Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        yield* Effect.scoped(Effect.andThen(loaded(), Effect.sync(() => stub.work(stream))))
        stub.fail("cuLibraryUnload", 999)
        stub.finish(stream)
        yield* until("it was tried", () => stub.calls("cuLibraryUnload").length === 1)
      })
      const { lines } = yield* logged(run(busy, { left: { libraries: 1 } }))
      assert.lengthOf(lines, 1)
      assert.match(lines[0]!, /^Warn .*cuLibraryUnload returned CUDA_ERROR_UNKNOWN \(999\)/)
    }))
})
