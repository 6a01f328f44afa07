/**
 * Kernels: arguments, order, rejected modules and launches, and cleanup.
 */
import { assert, layer } from "@effect/vitest"
import { CudaDevice, CudaKernel, CudaMemory, CudaModule, CudaParameter, CudaStream } from "effect-cuda"
import type { DeviceBuffer } from "effect-cuda/CudaMemory"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { failsWith, leavesNothing, refuses } from "../support/assertions.ts"
import { brokenProgram, clusterProgram, every, offsetsOf, program, signatures } from "../support/kernels.ts"
import { Busy } from "../support/Rig.ts"
import type { Rig } from "../support/Rig.ts"

const loaded = Effect.flatMap(program, (made) => CudaModule.load(made))

const kernel = <Name extends keyof typeof signatures>(name: Name) =>
  Effect.flatMap(loaded, (module) => CudaKernel.get(module, name, signatures[name]))

const one = { grid: 1, block: 1 }

const wordsOf = (buffer: CudaMemory.Slice<DeviceBuffer>, stream?: CudaStream.CudaStream) =>
  Effect.suspend(() => {
    const words = new Uint32Array(buffer.byteLength / 4)
    return Effect.map(CudaMemory.download(words, buffer, stream), () => [...words])
  })

const buffer = CudaMemory.allocate

export const kernelContract = (rig: Rig): void =>
  layer(rig.layer, { excludeTestServices: true })("kernels", (it) => {
    for (const count of [1, 31, 1000, 65_537]) {
      it.effect(`${count} numbers are added`, () =>
        leavesNothing(Effect.gen(function*() {
          const add = yield* kernel("add")
          const [to, from] = yield* Effect.all([buffer(4 * count), buffer(4 * count)])
          yield* CudaMemory.upload(to, Float32Array.from({ length: count }, (_, index) => index))
          yield* CudaMemory.upload(from, Float32Array.from({ length: count }, (_, index) => 0.5 * index))
          yield* CudaKernel.launch(add, { grid: Math.ceil(count / 256), block: 256 }, [to, from, count])
          const sums = new Float32Array(count)
          yield* CudaMemory.download(sums, to)
          assert.isTrue(sums.every((sum, index) => sum === 1.5 * index))
        })))
    }

    it.effect("32 arguments of every kind arrive in C layout", () =>
      leavesNothing(Effect.gen(function*() {
        const module = yield* loaded
        const kernel = yield* CudaKernel.get(module, "every", every)
        const offsets = offsetsOf(every)
        const size = offsets.at(-1)! + every.at(-1)!.size
        const out = yield* buffer(size)
        const other = yield* buffer(64)
        yield* CudaMemory.fill(out, 0)
        const part = CudaMemory.slice(other, 16, 8)
        const tagged = (tag: number) => ({ tag, at: { x: -1 / 3, y: 0.1 }, to: part, last: 0xfffe })
        yield* CudaKernel.launch(kernel, one, [
          out,
          255,
          -(2n ** 63n),
          -128,
          65535,
          -32768,
          1.5,
          -0.375,
          4294967295,
          true,
          -2147483648,
          Math.fround(0.1),
          0,
          2n ** 64n - 1n,
          Math.PI,
          127,
          tagged(7),
          1,
          { x: 1, y: 2, z: 3, w: 4 },
          -2,
          [1, 2, 3],
          Uint16Array.of(1, 2, 3, 4, 5),
          9,
          [tagged(1), { ...tagged(2), to: null }],
          null,
          3,
          [1e300, -1e-300],
          Infinity,
          256,
          [other, null],
          Number.MIN_SAFE_INTEGER,
          false
        ])
        const bytes = new Uint8Array(size)
        yield* CudaMemory.download(bytes, out)
        const view = new DataView(bytes.buffer)
        const at = (index: number) => offsets[index]!
        const word = (offset: number) => Number(view.getBigUint64(offset, true))
        assert.strictEqual(view.getUint8(at(1)), 255)
        assert.strictEqual(view.getBigInt64(at(2), true), -(2n ** 63n))
        assert.deepStrictEqual([view.getInt8(at(3)), view.getUint16(at(4), true)], [-128, 65535])
        assert.deepStrictEqual([view.getInt16(at(5), true), view.getUint16(at(6), true)], [-32768, 0x3e00])
        assert.strictEqual(view.getUint16(at(7), true), 0xbec0)
        assert.deepStrictEqual([view.getUint32(at(8), true), view.getUint8(at(9))], [4294967295, 1])
        assert.deepStrictEqual([view.getInt32(at(10), true), view.getFloat32(at(11), true)], [
          -2147483648,
          Math.fround(0.1)
        ])
        assert.strictEqual(view.getBigUint64(at(13), true), 2n ** 64n - 1n)
        assert.strictEqual(view.getFloat64(at(14), true), Math.PI)
        const record = (offset: number) => [
          view.getUint8(offset),
          view.getFloat64(offset + 8, true),
          view.getFloat32(offset + 16, true),
          word(offset + 24),
          view.getUint16(offset + 32, true)
        ]
        const expected = (tag: number, to: number) => [tag, -1 / 3, Math.fround(0.1), to, 0xfffe]
        assert.deepStrictEqual(record(at(16)), expected(7, other.address + 16))
        assert.strictEqual(at(18) % 16, 0)
        assert.deepStrictEqual([0, 4, 8, 12].map((offset) => view.getFloat32(at(18) + offset, true)), [1, 2, 3, 4])
        assert.deepStrictEqual([...bytes.subarray(at(20), at(20) + 3)], [1, 2, 3])
        assert.deepStrictEqual([0, 2, 4, 6, 8].map((offset) => view.getUint16(at(21) + offset, true)), [1, 2, 3, 4, 5])
        assert.deepStrictEqual(record(at(23)), expected(1, other.address + 16))
        assert.deepStrictEqual(record(at(23) + 40), expected(2, 0))
        assert.strictEqual(word(at(24)), 0)
        assert.deepStrictEqual([0, 8].map((offset) => view.getFloat64(at(26) + offset, true)), [1e300, -1e-300])
        assert.deepStrictEqual([view.getFloat32(at(27), true), view.getUint16(at(28), true)], [Infinity, 0x4380])
        assert.deepStrictEqual([word(at(29)), word(at(29) + 8)], [other.address, 0])
        assert.strictEqual(view.getBigInt64(at(30), true), BigInt(Number.MIN_SAFE_INTEGER))
        assert.strictEqual(view.getUint8(at(31)), 0)
      })))

    it.effect("launches pass sizes in every dimension, and shared memory", () =>
      leavesNothing(Effect.gen(function*() {
        const sizes = yield* kernel("sizes")
        const to = yield* buffer(28)
        yield* CudaKernel.launch(sizes, { grid: [3, 2, 4], block: [8, 4, 2], sharedBytes: 1000 }, [to])
        const [first, second, third, ...rest] = yield* wordsOf(to)
        assert.deepStrictEqual([first, second, third], [8, 4, 2])
        assert.deepStrictEqual(rest.slice(0, 3), [3, 2, 4])
        assert.isAtLeast(rest[3]!, 1000)
        yield* CudaKernel.launch(sizes, { grid: [5], block: [32, 2] }, [to])
        assert.deepStrictEqual((yield* wordsOf(to)).slice(0, 6), [32, 2, 1, 5, 1, 1])
      })))

    it.effect("slices and raw addresses point into buffers", () =>
      leavesNothing(Effect.gen(function*() {
        const put = yield* kernel("put")
        const to = yield* buffer(16)
        yield* CudaMemory.fill(to, 0)
        yield* CudaKernel.launch(put, one, [CudaMemory.slice(to, 4), 7])
        yield* CudaKernel.launch(put, one, [CudaParameter.address(to.address + 12), 8])
        assert.deepStrictEqual(yield* wordsOf(to), [0, 7, 0, 8])
      })))

    it.effect("kernels write pinned memory if the device can reach it", (context) =>
      Effect.gen(function*() {
        if ((yield* CudaDevice.attribute("canUseHostPointerForRegisteredMem")) === 0) return context.skip()
        yield* leavesNothing(Effect.gen(function*() {
          const put = yield* kernel("put")
          const host = yield* CudaMemory.allocateHost(8)
          const stream = yield* CudaStream.make()
          host.bytes.fill(0)
          yield* CudaKernel.launch(put, one, [CudaMemory.slice(host, 4), 0x01020304], stream)
          yield* CudaStream.synchronize(stream)
          assert.deepStrictEqual([...host.bytes], [0, 0, 0, 0, 4, 3, 2, 1])
        }))
      }))

    it.effect("launches run in stream order, by default on the current stream", () =>
      leavesNothing(Effect.gen(function*() {
        const [put, add] = yield* Effect.all([kernel("put"), kernel("add")])
        const { enqueue } = yield* Busy
        const stream = yield* CudaStream.make()
        const [to, from] = yield* Effect.all([buffer(4), buffer(4)])
        yield* enqueue(stream, 30)
        yield* CudaStream.withStream(
          Effect.gen(function*() {
            yield* CudaKernel.launch(put, one, [to, 0x40000000]) // 2
            yield* CudaKernel.launch(put, one, [from, 0x40400000]) // 3
            yield* CudaKernel.launch(add, one, [to, from, 1])
            yield* CudaKernel.launch(add, one, [to, from, 1])
          }),
          stream
        )
        assert.isFalse(yield* CudaStream.query(stream))
        const sum = new Float32Array(1)
        yield* CudaMemory.download(sum, to, stream)
        assert.strictEqual(sum[0], 8)
      })))

    it.effect("kernels run on default streams", () =>
      leavesNothing(Effect.gen(function*() {
        const put = yield* kernel("put")
        const to = yield* buffer(8)
        const [legacy, perThread] = yield* Effect.all([
          CudaStream.defaultStream(),
          CudaStream.defaultStream({ mode: "perThread" })
        ])
        yield* CudaKernel.launch(put, one, [to, 1], legacy)
        yield* CudaKernel.launch(put, one, [CudaMemory.slice(to, 4), 2], perThread)
        yield* CudaStream.synchronize(perThread)
        assert.deepStrictEqual(yield* wordsOf(to, legacy), [1, 2])
      })))

    it.effect("ordered buffers order launches on different streams", () =>
      leavesNothing(Effect.gen(function*() {
        const [put, add] = yield* Effect.all([kernel("put"), kernel("add")])
        const { enqueue } = yield* Busy
        const [first, second, third] = yield* Effect.all([CudaStream.make(), CudaStream.make(), CudaStream.make()])
        const [to, from] = yield* Effect.all([buffer(4, { ordered: true }), buffer(4, { ordered: true })])
        yield* CudaMemory.fill(to, 0, first)
        yield* enqueue(first, 50)
        yield* CudaKernel.launch(put, one, [from, 0x3f800000], first) // 1
        yield* CudaKernel.launch(add, one, [to, from, 1], second)
        yield* CudaKernel.launch(put, one, [from, 0x40000000], third) // 2
        yield* CudaKernel.launch(add, one, [to, from, 1], first)
        assert.isFalse(yield* CudaStream.query(third))
        const host = yield* CudaMemory.allocateHost(4, { ordered: true })
        yield* CudaMemory.copy(host, to, second)
        yield* CudaMemory.synchronize(host)
        assert.strictEqual(CudaMemory.view(host, Float32Array)[0], 3)
      })))

    it.effect("released buffers and modules stay alive until the kernel is done", () =>
      leavesNothing(Effect.gen(function*() {
        const { enqueue } = yield* Busy
        const runtime = yield* CudaRuntime
        const stream = yield* CudaStream.make()
        const to = yield* buffer(4)
        yield* leavesNothing(Effect.gen(function*() {
          const add = yield* kernel("add")
          const from = yield* buffer(4)
          yield* CudaMemory.upload(to, Float32Array.of(1), stream)
          yield* CudaMemory.upload(from, Float32Array.of(2), stream)
          yield* enqueue(stream, 50)
          yield* CudaKernel.launch(add, one, [to, from, 1], stream)
        }))
        assert.isFalse(yield* CudaStream.query(stream))
        assert.strictEqual((yield* runtime.liveResources).modules, 0)
        const sum = new Float32Array(1)
        yield* CudaMemory.download(sum, to, stream)
        assert.strictEqual(sum[0], 3)
      })))

    it.effect("global variables are read and written by name, and kernels see the writes", () =>
      leavesNothing(Effect.gen(function*() {
        const module = yield* loaded
        const bump = yield* CudaKernel.get(module, "bump", signatures.bump)
        const counter = yield* CudaModule.global(module, "counter")
        const to = yield* buffer(4)
        assert.strictEqual(counter.byteLength, 4)
        assert.deepStrictEqual(yield* wordsOf(counter), [5])
        yield* CudaKernel.launch(bump, one, [to])
        assert.deepStrictEqual(yield* wordsOf(to), [6])
        yield* CudaMemory.upload(counter, Uint32Array.of(41))
        yield* CudaKernel.launch(bump, one, [to])
        assert.deepStrictEqual([yield* wordsOf(to), yield* wordsOf(counter)], [[42], [42]])
        const again = yield* module.pipe(CudaModule.global("counter"))
        assert.strictEqual(again.address, counter.address)
        yield* failsWith(CudaModule.global(module, "missing"), "NotFound")
      })))

    it.effect("each module has its own globals", () =>
      leavesNothing(Effect.gen(function*() {
        const [one, other] = yield* Effect.all([loaded, loaded])
        const [first, second] = [yield* CudaModule.global(one, "counter"), yield* CudaModule.global(other, "counter")]
        yield* CudaMemory.fill(first, 0)
        assert.deepStrictEqual([yield* wordsOf(first), yield* wordsOf(second)], [[0], [5]])
      })))

    it.effect("unknown kernels and globals fail with NotFound", () =>
      leavesNothing(Effect.gen(function*() {
        const module = yield* loaded
        const reason = yield* failsWith(CudaKernel.get(module, "missing", []), "NotFound")
        assert.strictEqual(reason.code, 500)
        yield* refuses(CudaKernel.get(module, "", []), "name")
      })))

    it.effect("parameters that do not match the kernel are rejected", () =>
      leavesNothing(Effect.gen(function*() {
        const module = yield* loaded
        const get = (...parameters: ReadonlyArray<CudaParameter.ParameterKind>) =>
          CudaKernel.get(module, "put", parameters)
        yield* refuses(get(CudaParameter.output), "parameters")
        yield* refuses(get(CudaParameter.output, CudaParameter.u32, CudaParameter.u32), "parameters")
        yield* refuses(get(CudaParameter.output, CudaParameter.u64), "parameters[1]")
        yield* refuses(get(CudaParameter.u32, CudaParameter.u32), "parameters[0]")
        // A driver knows the sizes of parameters, a simulated device their kinds too.
        if (rig.name === "native") yield* get(CudaParameter.u64, CudaParameter.f32)
        else yield* refuses(get(CudaParameter.output, CudaParameter.f32), "parameters[1]")
        yield* get(CudaParameter.pointer, CudaParameter.u32)
      })))

    it.effect("arguments of the wrong kind are rejected by name", () =>
      leavesNothing(Effect.gen(function*() {
        const module = yield* loaded
        const loose: CudaKernel.CudaKernel = yield* CudaKernel.get(module, "add", signatures.add)
        const to = yield* buffer(4)
        const launch = (...args: ReadonlyArray<CudaParameter.KernelArgument>) => CudaKernel.launch(loose, one, args)
        yield* refuses(launch(to, to), "arguments")
        yield* refuses(launch(to, to, 1, 1), "arguments")
        yield* refuses(launch(to, null, 1), "arguments[1]")
        yield* refuses(launch(to, 4096, 1), "arguments[1]")
        yield* refuses(launch(to, to, -1), "arguments[2]")
        yield* refuses(launch(to, to, 0.5), "arguments[2]")
        yield* refuses(launch(to, to, 2 ** 32), "arguments[2]")
        yield* refuses(launch(to, to, 1n), "arguments[2]")
        yield* refuses(launch(to, CudaMemory.slice(to, 8), 1), "arguments[1].offset")
        yield* refuses(launch(to, CudaMemory.slice(to, 2, 4), 1), "arguments[1].byteLength")
      })))

    it.effect("invalid launches are rejected by the field at fault", () =>
      leavesNothing(Effect.gen(function*() {
        const [put, small] = yield* Effect.all([kernel("put"), kernel("small")])
        const to = yield* buffer(4)
        const launch = (config: CudaKernel.LaunchConfig) => CudaKernel.launch(put, config, [to, 1])
        yield* refuses(launch({ grid: 1, block: 0 }), "block.x")
        yield* refuses(launch({ grid: 1, block: 2048 }), "block.x")
        yield* refuses(launch({ grid: 1, block: [32, 32, 2] }), "block")
        yield* refuses(launch({ grid: 1, block: [1, 1, 65] }), "block.z")
        yield* refuses(launch({ grid: 0, block: 1 }), "grid.x")
        yield* refuses(launch({ grid: -1, block: 1 }), "grid.x")
        yield* refuses(launch({ grid: 2.5, block: 1 }), "grid.x")
        yield* refuses(launch({ grid: 2 ** 31, block: 1 }), "grid.x")
        yield* refuses(launch({ grid: [1, 65_536], block: 1 }), "grid.y")
        yield* refuses(launch({ grid: [1, 1, 0], block: 1 }), "grid.z")
        yield* refuses(launch({ grid: 1, block: 1, sharedBytes: -1 }), "sharedBytes")
        yield* refuses(launch({ grid: 1, block: 1, sharedBytes: 2 ** 20 }), "sharedBytes")
        yield* refuses(CudaKernel.launch(small, { grid: 1, block: 65 }, [to]), "block")
        yield* CudaKernel.launch(small, { grid: 1, block: 64 }, [to])
      })))

    it.effect("more than 48 KiB of shared memory needs no opt-in", () =>
      leavesNothing(Effect.gen(function*() {
        const most = yield* CudaDevice.attribute("maxSharedMemoryPerBlockOptin")
        const sizes = yield* kernel("sizes")
        const to = yield* buffer(28)
        yield* CudaKernel.launch(sizes, { ...one, sharedBytes: most }, [to])
        assert.isAtLeast((yield* wordsOf(to))[6]!, most)
        yield* refuses(CudaKernel.launch(sizes, { ...one, sharedBytes: most + 1 }, [to]), "sharedBytes")
      })))

    it.effect("released and foreign buffers, modules and streams are rejected", () =>
      leavesNothing(Effect.gen(function*() {
        const put = yield* kernel("put")
        const gone = yield* Effect.scoped(buffer(4))
        yield* failsWith(CudaKernel.launch(put, one, [gone, 1]), "ResourceReleased")
        const to = yield* buffer(4)
        const stale = yield* Effect.scoped(kernel("put"))
        yield* failsWith(CudaKernel.launch(stale, one, [to, 1]), "ResourceReleased")
        yield* failsWith(CudaKernel.attribute(stale, "numRegs"), "ResourceReleased")
        yield* failsWith(CudaKernel.get(stale.module, "put", signatures.put), "ResourceReleased")
        yield* failsWith(CudaModule.global(stale.module, "counter"), "ResourceReleased")
        const { runtime } = yield* SimulatedRuntime.make()
        const elsewhere = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
          Effect.provideService(effect, CudaRuntime, runtime)
        const [foreign, stream] = yield* elsewhere(Effect.all([buffer(4), CudaStream.make()]))
        yield* failsWith(CudaKernel.launch(put, one, [foreign, 1]), "ForeignResource")
        yield* failsWith(CudaKernel.launch(put, one, [to, 1], stream), "ForeignResource")
        yield* failsWith(runtime.kernelLaunch(put.ref, one, [], stream.ref), "ForeignResource")
        yield* failsWith(runtime.moduleUnload(put.module.ref), "ForeignResource")
      })))

    it.effect("a global's memory is released with its module", () =>
      leavesNothing(Effect.gen(function*() {
        const counter = yield* Effect.scoped(Effect.flatMap(loaded, CudaModule.global("counter")))
        yield* failsWith(CudaMemory.fill(counter, 0), "ResourceReleased")
      })))

    it.effect.skipIf(rig.deviceCount < 2)("a kernel launches on every device, only with that device's memory", () =>
      Effect.gen(function*() {
        yield* leavesNothing(Effect.gen(function*() {
          const put = yield* kernel("put")
          const stream = yield* CudaStream.make({ device: 1 })
          const [here, there] = yield* Effect.all([buffer(4), buffer(4, { device: 1 })])
          yield* CudaKernel.launch(put, one, [there, 9], stream)
          assert.deepStrictEqual(yield* wordsOf(there, stream), [9])
          const reason = yield* failsWith(CudaKernel.launch(put, one, [here, 9], stream), "DeviceMismatch")
          assert.deepStrictEqual(reason.deviceIndices, [0, 1])
          yield* CudaKernel.launch(put, one, [there, 10]).pipe(CudaDevice.withDevice(1))
          assert.deepStrictEqual(yield* wordsOf(there), [10])
        }))
      }))

    it.effect("attributes can be read and set", () =>
      leavesNothing(Effect.gen(function*() {
        const [put, small] = yield* Effect.all([kernel("put"), kernel("small")])
        assert.isAtLeast(yield* CudaKernel.attribute(put, "numRegs"), 1)
        assert.strictEqual(yield* small.pipe(CudaKernel.attribute("maxThreadsPerBlock")), 64)
        assert.strictEqual(yield* CudaKernel.attribute(put, "maxDynamicSharedSizeBytes"), 48 * 1024)
        yield* CudaKernel.setAttribute(put, "maxDynamicSharedSizeBytes", 64 * 1024)
        assert.strictEqual(yield* CudaKernel.attribute(put, "maxDynamicSharedSizeBytes"), 64 * 1024)
        yield* put.pipe(CudaKernel.setAttribute("preferredSharedMemoryCarveout", 50))
        assert.strictEqual(yield* CudaKernel.attribute(put, "preferredSharedMemoryCarveout"), 50)
        yield* refuses(CudaKernel.setAttribute(put, "maxDynamicSharedSizeBytes", 0.5), "value")
        yield* refuses(CudaKernel.setAttribute(put, "maxDynamicSharedSizeBytes", -1), "value")
        const most = yield* CudaDevice.attribute("maxSharedMemoryPerBlockOptin")
        yield* CudaKernel.setAttribute(put, "maxDynamicSharedSizeBytes", most)
        yield* refuses(CudaKernel.setAttribute(put, "maxDynamicSharedSizeBytes", most + 1), "value")
      })))

    it.effect("occupancy reports active blocks and the best block size", () =>
      leavesNothing(Effect.gen(function*() {
        const [put, small] = yield* Effect.all([kernel("put"), kernel("small")])
        const [few, many] = yield* Effect.all([
          CudaKernel.activeBlocks(put, { block: 1024 }),
          CudaKernel.activeBlocks(put, { block: 64 })
        ])
        assert.isAtLeast(few, 1)
        assert.isAbove(many, few)
        const most = yield* CudaDevice.attribute("maxSharedMemoryPerBlockOptin")
        assert.strictEqual(yield* CudaKernel.activeBlocks(put, { block: 64, sharedBytes: most }), 1)
        const best = yield* CudaKernel.bestBlock(put)
        const processors = yield* CudaDevice.attribute("multiprocessorCount")
        assert.strictEqual(best.minGrid % processors, 0)
        assert.isAtLeast(best.block, 64)
        assert.isAtMost((yield* CudaKernel.bestBlock(put, { maxThreads: 100 })).block, 100)
        assert.isAtMost((yield* CudaKernel.bestBlock(small)).block, 64)
        yield* refuses(CudaKernel.activeBlocks(put, { block: 0 }), "block.x")
        yield* refuses(CudaKernel.bestBlock(put, { maxThreads: -1 }), "maxThreads")
      })))

    it.effect("cooperative and programmatic launches run", (context) =>
      Effect.gen(function*() {
        if ((yield* CudaDevice.attribute("computeCapabilityMajor")) < 9) {
          return context.skip()
        }
        yield* leavesNothing(Effect.gen(function*() {
          const [put, sizes] = yield* Effect.all([kernel("put"), kernel("sizes")])
          const to = yield* buffer(28)
          const stream = yield* CudaStream.make()
          yield* CudaKernel.launch(put, { ...one, cooperative: true }, [to, 3], stream)
          assert.strictEqual((yield* wordsOf(to, stream))[0], 3)
          yield* CudaKernel.launch(put, one, [to, 4], stream)
          yield* CudaKernel.launch(sizes, { grid: 2, block: 32, programmatic: true }, [to], stream)
          assert.deepStrictEqual((yield* wordsOf(to, stream)).slice(0, 6), [32, 1, 1, 2, 1, 1])
        }))
      }))

    it.effect("cooperative launches are as large as the device runs at once, and no larger", (context) =>
      Effect.gen(function*() {
        if ((yield* CudaDevice.attribute("cooperativeLaunch")) === 0) {
          return context.skip()
        }
        yield* leavesNothing(Effect.gen(function*() {
          const sizes = yield* kernel("sizes")
          const stream = yield* CudaStream.make()
          const to = yield* buffer(28)
          const most = (yield* CudaKernel.activeBlocks(sizes, { block: 1024 })) *
            (yield* CudaDevice.attribute("multiprocessorCount"))
          const launch = (grid: number) =>
            CudaKernel.launch(sizes, { grid, block: 1024, cooperative: true }, [to], stream)
          yield* launch(most)
          assert.strictEqual((yield* wordsOf(to, stream))[3], most)
          const reason = yield* failsWith(launch(most + 1), "CooperativeLaunchTooLarge")
          assert.strictEqual(reason.code, 720)
          assert.isTrue(yield* CudaStream.query(stream))
        }))
      }))

    it.effect("clusters of more than 8 blocks take the kernel's attribute for them", (context) =>
      Effect.gen(function*() {
        const kernels = yield* clusterProgram
        if ((yield* CudaDevice.attribute("clusterLaunch")) === 0) {
          return context.skip()
        }
        yield* leavesNothing(Effect.gen(function*() {
          const clusters = yield* CudaKernel.get(yield* CudaModule.load(kernels), "clusters", signatures.clusters)
          const to = yield* buffer(12)
          const config = { grid: 16, block: 32, cluster: 16 }
          const reason = yield* failsWith(CudaKernel.launch(clusters, config, [to]), "InvalidClusterSize")
          assert.strictEqual(reason.code, 912)
          yield* failsWith(CudaKernel.activeClusters(clusters, config), "InvalidClusterSize")
          assert.strictEqual(yield* CudaKernel.maxClusterSize(clusters, config), 8)
          yield* CudaKernel.setAttribute(clusters, "nonPortableClusterSizeAllowed", 1)
          if ((yield* CudaKernel.maxClusterSize(clusters, config)) < 16) {
            return context.skip()
          }
          yield* CudaKernel.launch(clusters, config, [to])
          assert.deepStrictEqual(yield* wordsOf(to), [16, 1, 1])
        }))
      }))

    it.effect("cooperative launches of clusters are as large as the device runs at once, and no larger", (context) =>
      Effect.gen(function*() {
        const kernels = yield* clusterProgram
        if ((yield* CudaDevice.attribute("clusterLaunch")) === 0) {
          return context.skip()
        }
        yield* leavesNothing(Effect.gen(function*() {
          const clusters = yield* CudaKernel.get(yield* CudaModule.load(kernels), "clusters", signatures.clusters)
          const to = yield* buffer(12)
          const config = { grid: 4, block: 1024, cluster: 4 }
          const most = (yield* CudaKernel.activeClusters(clusters, config)) * config.cluster
          const launch = (grid: number) =>
            CudaKernel.launch(clusters, { ...config, grid, cooperative: true }, [to])
          yield* launch(most)
          assert.deepStrictEqual(yield* wordsOf(to), [4, 1, 1])
          yield* failsWith(launch(most + config.cluster), "CooperativeLaunchTooLarge")
        }))
      }))

    it.effect("clusters have the requested size, where supported", (context) =>
      Effect.gen(function*() {
        const kernels = yield* clusterProgram
        if ((yield* CudaDevice.attribute("computeCapabilityMajor")) < 9) {
          return context.skip()
        }
        yield* leavesNothing(Effect.gen(function*() {
          const clusters = yield* CudaKernel.get(yield* CudaModule.load(kernels), "clusters", signatures.clusters)
          const to = yield* buffer(12)
          const config = { grid: [8, 2], block: 32, cluster: [4, 2] } as const
          yield* CudaKernel.launch(clusters, config, [to])
          assert.deepStrictEqual(yield* wordsOf(to), [4, 2, 1])
          assert.isAtLeast(yield* CudaKernel.activeClusters(clusters, config), 1)
          assert.isAtLeast(yield* CudaKernel.maxClusterSize(clusters, config), 8)
          const launch = (config: CudaKernel.LaunchConfig) => CudaKernel.launch(clusters, config, [to])
          yield* refuses(launch({ grid: 9, block: 32, cluster: 4 }), "grid.x")
          yield* refuses(launch({ grid: 8, block: 32, cluster: 0 }), "cluster.x")
          yield* refuses(launch({ grid: 64, block: 32, cluster: 32 }), "cluster.x")
          yield* refuses(launch({ grid: [8, 8], block: 32, cluster: [8, 4] }), "cluster")
        }))
      }))

    it.effect("modules loaded concurrently are unloaded with their scope", () =>
      leavesNothing(Effect.gen(function*() {
        const scope = yield* Scope.make()
        yield* Effect.forEach(Array.from({ length: 8 }), () => Scope.provide(loaded, scope), { concurrency: 8 })
        const runtime = yield* CudaRuntime
        assert.strictEqual((yield* runtime.liveResources).modules, 8)
        yield* Scope.close(scope, Exit.void)
      })))

    if (rig.name === "native") {
      it.effect("PTX that does not compile fails with the driver's log", () =>
        leavesNothing(Effect.gen(function*() {
          const error = yield* Effect.flip(Effect.flatMap(brokenProgram, (broken) => CudaModule.load(broken)))
          assert.strictEqual(error.reason._tag, "InvalidPtx")
          assert.match(error.log ?? "", /line 8/)
          assert.include(error.message, error.log ?? "no log")
        })))
    }
  })
