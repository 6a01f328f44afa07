/**
 * Layers around a runtime: a wrapped runtime keeps its identity, and works together with the one inside. Resources and regions of a
 * runtime with another identity are rejected.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  CudaBranch,
  CudaDependency,
  CudaEvent,
  CudaKernel,
  CudaMemory,
  CudaModule,
  CudaParameter,
  CudaProgram,
  CudaStream,
  CudaTaskGraph,
  CudaTiming,
  SimulatedRuntime
} from "effect-cuda"
import type { CudaError } from "effect-cuda"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import type { CudaRuntimeService, StreamRef } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Hash from "effect/Hash"
import type * as Scope from "effect/Scope"
import type { Span } from "effect/Tracer"
import { failsWith } from "./support/assertions.ts"

const kernels = {
  nothing: SimulatedRuntime.kernel({ parameters: [CudaParameter.u32], cost: 0, run: () => {} })
}

interface Pair {
  readonly inner: CudaRuntimeService
  /** A layer around `inner`, written without `around`. */
  readonly wrapped: CudaRuntimeService
  /** The streams of the fills that the layer saw. */
  readonly filled: Array<StreamRef>
  readonly onInner: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, Exclude<R, CudaRuntime>>
  readonly onWrapped: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, Exclude<R, CudaRuntime>>
}

const withPair = <A, E>(body: (pair: Pair) => Effect.Effect<A, E, Scope.Scope>) =>
  Effect.gen(function*() {
    const { runtime: inner } = yield* SimulatedRuntime.make({ devices: 2, kernels })
    const filled: Array<StreamRef> = []
    const wrapped: CudaRuntimeService = {
      ...inner,
      memoryFill: (range, value, bits, stream) => {
        filled.push(stream)
        return inner.memoryFill(range, value, bits, stream)
      }
    }
    const onInner = Effect.provideService(CudaRuntime, inner)
    const onWrapped = Effect.provideService(CudaRuntime, wrapped)
    return yield* body({ inner, wrapped, filled, onInner, onWrapped })
  }).pipe(Effect.scoped)

describe("a layer around a runtime", () => {
  it.live("shares regions with the runtime inside, in both directions", () =>
    withPair(({ filled, onInner, onWrapped }) =>
      Effect.gen(function*() {
        const stream = yield* onInner(CudaStream.make())
        const buffer = yield* onWrapped(CudaMemory.allocate(64))
        yield* CudaMemory.fill(buffer, 1).pipe(CudaStream.withStream(stream))
        assert.deepStrictEqual(filled, [stream.ref])

        const ofLayer = yield* onWrapped(CudaStream.make())
        const event = yield* onInner(CudaEvent.make())
        yield* CudaEvent.record(event).pipe(CudaStream.withStream(ofLayer))
        yield* CudaEvent.wait(event).pipe(CudaStream.withStream(ofLayer))
        yield* onInner(CudaDependency.make([event])).pipe(
          Effect.flatMap(CudaDependency.wait()),
          CudaStream.withStream(ofLayer)
        )
        yield* CudaStream.synchronize(ofLayer)
      })
    ))

  it.live("has handles that equal those of the runtime inside", () =>
    withPair(({ inner, onInner, onWrapped, wrapped }) =>
      Effect.gen(function*() {
        const stream = yield* onInner(CudaStream.make())
        const current = yield* onWrapped(CudaStream.current()).pipe(CudaStream.withStream(stream))
        assert.isTrue(Equal.equals(current, stream))
        assert.strictEqual(Hash.hash(current), Hash.hash(stream))
        assert.strictEqual(current.runtime, wrapped)
        const same = yield* onInner(CudaStream.current()).pipe(CudaStream.withStream(stream))
        assert.strictEqual(same, stream)
        assert.strictEqual(stream.runtime, inner)
      })
    ))

  it.live("shares the pooled streams, with separate handles", () =>
    withPair(({ inner, onInner, onWrapped, wrapped }) =>
      Effect.gen(function*() {
        const take = (index: number) =>
          index % 2 === 0 ? onInner(CudaStream.fromPool()) : onWrapped(CudaStream.fromPool())
        const streams = yield* Effect.forEach(Array.from({ length: 64 }, (_, index) => index), take)
        assert.strictEqual((yield* inner.liveResources).streams, 32)
        for (const [index, stream] of streams.entries()) {
          assert.strictEqual(stream.runtime, index % 2 === 0 ? inner : wrapped)
          assert.strictEqual(stream, streams[index % 32], "one handle for each as long as one runtime asks")
        }
        const other = yield* onInner(Effect.replicateEffect(CudaStream.fromPool(), 2))
        assert.deepStrictEqual(other.map((stream) => stream.runtime), [inner, inner])
        assert.isTrue(Equal.equals(other[1], streams[1]))
      })
    ))

  it.live("forks branches and runs graphs from the regions of the runtime inside", () =>
    withPair(({ filled, onInner, onWrapped }) =>
      Effect.gen(function*() {
        const stream = yield* onInner(CudaStream.make())
        const [left, right] = yield* onWrapped(Effect.all([CudaMemory.allocate(64), CudaMemory.allocate(64)]))
        const fills = [CudaMemory.fill(left, 1), CudaMemory.fill(right, 2)]
        const graph = CudaTaskGraph.empty.pipe(
          CudaTaskGraph.add("left", fills[0]!),
          CudaTaskGraph.add("right", fills[1]!)
        )
        const host = yield* onWrapped(CudaMemory.allocateHost(128))
        const program = Effect.gen(function*() {
          yield* CudaBranch.all(fills)
          const branch = yield* CudaBranch.fork(fills[0]!)
          yield* CudaBranch.join(branch)
          yield* CudaTaskGraph.run(graph)
          yield* fills[0]!.pipe(CudaStream.withPooledStream())
          yield* CudaMemory.copy(CudaMemory.slice(host, 0, 64), left)
          yield* CudaMemory.copy(CudaMemory.slice(host, 64), right)
        })
        yield* onWrapped(Effect.scoped(program)).pipe(CudaStream.withStream(stream))
        yield* CudaStream.synchronize(stream)
        assert.deepStrictEqual([host.bytes[0], host.bytes[64]], [1, 2])
        assert.lengthOf(filled, 6)
        assert.include(filled, stream.ref, "the graph uses the current stream too")
        assert.isAbove(new Set(filled).size, 2)
      })
    ))

  it.live("measures on the regions of the runtime inside", () =>
    withPair(({ onInner, onWrapped }) =>
      Effect.gen(function*() {
        const stream = yield* onInner(CudaStream.make())
        const buffer = yield* onWrapped(CudaMemory.allocate(64))
        const filled = CudaMemory.fill(buffer, 1)
        yield* onWrapped(CudaTiming.timed(filled)).pipe(CudaStream.withStream(stream))
        const [timeline] = yield* onWrapped(CudaTiming.timeline(CudaTiming.region(filled, "fill"))).pipe(
          CudaStream.withStream(stream)
        )
        assert.deepStrictEqual(timeline.regions.map(({ name, streamId }) => [name, streamId]), [["fill", stream.id]])
        assert.strictEqual(timeline.dropped, 0)
      })
    ))
})

describe("a region of another runtime", () => {
  interface Meeting {
    readonly stream: CudaStream.CudaStream
    readonly other: CudaRuntimeService
  }

  /** Makes a stream of one runtime current, for effects on another runtime. */
  const meeting = <A, E>(body: (meeting: Meeting) => Effect.Effect<A, E, CudaRuntime | Scope.Scope>) =>
    withPair(({ onInner }) =>
      Effect.gen(function*() {
        const stream = yield* onInner(CudaStream.make())
        const { runtime: other } = yield* SimulatedRuntime.make({ devices: 2, kernels })
        return yield* Effect.provideService(body({ stream, other }), CudaRuntime, other)
      })
    )

  const refused = <A, R>(operation: string, effect: Effect.Effect<A, CudaError.CudaError, R>, { stream }: Meeting) =>
    Effect.gen(function*() {
      const reason = yield* failsWith(CudaStream.withStream(effect, stream), "ForeignResource")
      assert.strictEqual(reason.resource, `stream ${stream.id} of device 0`)
      const error = yield* Effect.flip(CudaStream.withStream(effect, stream))
      assert.strictEqual(error.operation, operation)
    })

  it.live("is not ignored: operations fail, and name its stream", () =>
    meeting((at) =>
      Effect.gen(function*() {
        const [buffer, host] = [yield* CudaMemory.allocate(64), yield* CudaMemory.allocateHost(64)]
        const managed = yield* CudaMemory.allocateManaged(64)
        const event = yield* CudaEvent.make()
        const dependency = yield* CudaDependency.make([event])
        const program = yield* CudaProgram.compile("__global__ void nothing(unsigned);", {
          nameExpressions: ["nothing"]
        })
        const nothing = yield* CudaKernel.get(yield* CudaModule.load(program), "nothing", [CudaParameter.u32])
        const array = new Uint8Array(64)
        const whole = { width: 64, height: 1 }
        yield* refused("CudaMemory.fill", CudaMemory.fill(buffer, 1), at)
        yield* refused("CudaMemory.fill16", CudaMemory.fill16(buffer, 1), at)
        yield* refused("CudaMemory.copy", CudaMemory.copy(host, buffer), at)
        yield* refused("CudaMemory.copy2D", CudaMemory.copy2D(host, buffer, whole), at)
        yield* refused("CudaMemory.copyBatch", CudaMemory.copyBatch([{ destination: host, source: buffer }]), at)
        yield* refused("CudaMemory.prefetch", CudaMemory.prefetch(managed, "host"), at)
        yield* refused("CudaMemory.access", CudaMemory.access(Effect.void, { reads: [buffer] }), at)
        yield* refused("CudaMemory.upload", CudaMemory.upload(buffer, array), at)
        yield* refused("CudaMemory.download", CudaMemory.download(array, buffer), at)
        yield* refused("CudaEvent.record", CudaEvent.record(event), at)
        yield* refused("CudaEvent.wait", CudaEvent.wait(event), at)
        yield* refused("CudaDependency.wait", CudaDependency.wait(dependency), at)
        yield* refused("CudaKernel.launch", CudaKernel.launch(nothing, { grid: 1, block: 1 }, [1]), at)
        yield* refused("CudaStream.current", CudaStream.current(), at)
      })
    ))

  it.live("makes branches, graphs and measurements fail", () =>
    meeting((at) =>
      Effect.gen(function*() {
        const branch = yield* CudaBranch.fork(Effect.void)
        const graph = CudaTaskGraph.empty.pipe(CudaTaskGraph.add("nothing", Effect.void))
        yield* refused("CudaBranch.all", CudaBranch.all([Effect.void]), at)
        yield* refused("CudaBranch.forEach", CudaBranch.forEach([1], () => Effect.void), at)
        yield* refused("CudaBranch.fork", CudaBranch.fork(Effect.void), at)
        yield* refused("CudaBranch.join", CudaBranch.join(branch), at)
        yield* refused("CudaTaskGraph.run", CudaTaskGraph.run(graph), at)
        yield* refused("CudaTiming.timed", CudaTiming.timed(Effect.void), at)
        const inRegion = CudaTiming.region(Effect.void, "region").pipe(CudaStream.withStream(at.stream))
        const [timeline] = yield* CudaTiming.timeline(inRegion)
        assert.deepStrictEqual([timeline.regions.length, timeline.dropped], [0, 1])
        const spans: Array<Span> = []
        yield* Effect.flatMap(Effect.currentSpan, (span) => Effect.sync(() => spans.push(span as Span))).pipe(
          CudaTiming.withSpan("span"),
          CudaStream.withStream(at.stream)
        )
        assert.include(String(spans[0]!.attributes.get("cuda.error")), `stream ${at.stream.id} of device 0 belongs to`)
      })
    ))

  it.live("does not affect explicit streams, inner regions, and other devices", () =>
    meeting(({ other, stream }) =>
      Effect.gen(function*() {
        const buffer = yield* CudaMemory.allocate(64)
        const own = yield* CudaStream.make()
        const fill = CudaMemory.fill(buffer, 1)
        yield* CudaMemory.fill(buffer, 1, own)
        yield* CudaStream.withStream(fill, own)
        yield* CudaStream.withStream(fill, yield* CudaStream.defaultStream())
        yield* CudaStream.withPooledStream(fill)
        const elsewhere = yield* CudaStream.current(1)
        assert.strictEqual(elsewhere.runtime, other)
      }).pipe(CudaStream.withStream(stream))
    ))
})
