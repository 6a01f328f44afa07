/**
 * Partitions: shares of a device's multiprocessors, each with streams of its own.
 *
 * Work on a partition's streams runs on its multiprocessors only, so a small kernel that must start at once does not wait for a large one in
 * another partition. Depends on the `CudaRuntime` interface, on streams, and on the handles shared by the modules.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type { Inspectable } from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import type { CudaDevice, DeviceInput } from "./CudaDevice.ts"
import type { CudaError } from "./CudaError.ts"
import { withPooledStream } from "./CudaStream.ts"
import type { PriorityOptions } from "./CudaStream.ts"
import { refuseForced } from "./internal/given.ts"
import { DeviceHandle, oneLine, refuseArgument, released, unlessLive } from "./internal/handles.ts"
import { CurrentPartition } from "./internal/partition.ts"
import { resolveDevice } from "./internal/place.ts"
import { CudaRuntime } from "./layers/CudaRuntime.ts"
import type { CudaRuntimeService, PartitionRef, PartitionSize } from "./layers/CudaRuntime.ts"

const TypeId = "~effect-cuda/CudaPartition"

/**
 * A share of a device's multiprocessors (a green context).
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaPartition extends Pipeable, Inspectable {
  readonly "~effect-cuda/CudaPartition": "~effect-cuda/CudaPartition"
  readonly runtime: CudaRuntimeService
  readonly ref: PartitionRef
  /** The number of multiprocessors, which may be more than was asked for. */
  readonly multiprocessors: number
  /** The `CUcontext` of the green context, for other native code. */
  readonly handle: number
  readonly deviceIndex: number
  readonly device: CudaDevice
}

export type {
  /**
   * The size of a partition: at least this many multiprocessors, or `"rest"` for all that are left.
   *
   * @category models
   * @since 0.1.0
   */
  PartitionSize
}

/**
 * Options for making a partition.
 *
 * @category models
 * @since 0.1.0
 */
export interface MakeOptions {
  /** At least this many multiprocessors, or `"rest"` for all that are left. */
  readonly multiprocessors: PartitionSize
  /** Default: the current device. */
  readonly device?: DeviceInput | undefined
}

/**
 * Returns `true` if a value is a partition.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaPartition = (u: unknown): u is CudaPartition => Predicate.hasProperty(u, TypeId)

class PartitionImpl extends DeviceHandle<PartitionRef> implements CudaPartition {
  readonly [TypeId] = TypeId
  get multiprocessors(): number {
    return this.ref.multiprocessors
  }
  get handle(): number {
    return this.ref.handle
  }
  toString(): string {
    const { deviceIndex, multiprocessors } = this
    return oneLine(
      "CudaPartition",
      `${multiprocessors} multiprocessors`,
      `device ${deviceIndex}`,
      unlessLive(this.ref)
    )
  }
  toJSON() {
    const { deviceIndex, handle, multiprocessors } = this
    return { _id: "CudaPartition", deviceIndex, multiprocessors, handle, state: this.ref.state }
  }
}

/**
 * Makes a partition that lives as long as its scope (`cuGreenCtxCreate`). No other partition of the runtime has its multiprocessors.
 *
 * **Details**
 *
 * Multiprocessors come in groups of the size that the device needs to keep clusters together: 8 on an H200, so a partition of 20 gets 24.
 * Streams are made in it with the option `partition` of `CudaStream.make`, or by `within`. Everything else is the device's: memory,
 * events and kernels work in all partitions, and streams of different partitions wait for each other as usual.
 *
 * The driver makes a partition only while the device is idle, and would block the thread until then. So this waits for a moment without work
 * of the runtime; make partitions when a service starts. It can be interrupted. Multiprocessors that a partition had before are there at once.
 *
 * Closing the scope refuses new work on the partition's streams, waits for the work on them and for graphs with nodes in the partition, and
 * destroys the streams, those of its pool as well. Fails with `InvalidArgument` if fewer multiprocessors are left, and with `NotSupported` if
 * the driver is older than CUDA 12.5.
 *
 * **Gotchas**
 *
 * Work on streams that are in no partition runs on all multiprocessors, also on those of partitions, and delays them. Put large work into a
 * partition too.
 *
 * Multiprocessors are all that is divided: partitions share the memory bandwidth, the caches and the copy engines.
 *
 * The driver keeps 4 MiB of device memory for each partition on an H200, also after it is destroyed. Green contexts are therefore kept
 * until the runtime ends, and used again.
 *
 * **Example** (Requests that do not wait for a batch)
 *
 * ```ts
 * import { CudaMemory, CudaPartition } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const answer: Effect.Effect<void>
 * declare const train: Effect.Effect<void>
 *
 * const program = Effect.gen(function*() {
 *   const requests = yield* CudaPartition.make({ multiprocessors: 32 })
 *   const batch = yield* CudaPartition.make({ multiprocessors: "rest" })
 *   yield* Effect.all([
 *     CudaPartition.within(answer, requests),
 *     CudaPartition.within(train, batch)
 *   ], { concurrency: 2 })
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  options: MakeOptions
): Effect.Effect<CudaPartition, CudaError, CudaRuntime | Scope.Scope> =>
  Predicate.isObject(options)
    ? Effect.map(acquire([options.multiprocessors], options.device), ([partition]) => partition!)
    : refuseArgument("CudaPartition.make", "options", options, "a number of multiprocessors")

/**
 * Makes several partitions at once, or none. They live as long as the scope.
 *
 * **Details**
 *
 * `"rest"` gets what the others leave, wherever it is in the list. Otherwise like `make`.
 *
 * **Example** (Two partitions and what is left)
 *
 * ```ts
 * import { CudaPartition } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const parts = Effect.gen(function*() {
 *   const [requests, reports, batch] = yield* CudaPartition.split([32, 64, "rest"])
 *   return { requests, reports, batch }
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const split = <const Sizes extends ReadonlyArray<PartitionSize>>(
  multiprocessors: Sizes,
  options: {
    /** Default: the current device. */
    readonly device?: DeviceInput | undefined
  } = {}
): Effect.Effect<{ readonly [Index in keyof Sizes]: CudaPartition }, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.map(
    acquire(multiprocessors, options.device),
    (partitions) => partitions as { readonly [Index in keyof Sizes]: CudaPartition }
  )

/**
 * Making partitions can be interrupted at any step, also after they were made and before the runtime, or a layer around it, has returned them.
 * So they are noted when they are made.
 */
const acquire = (
  sizes: ReadonlyArray<PartitionSize>,
  device: DeviceInput | undefined
): Effect.Effect<ReadonlyArray<CudaPartition>, CudaError, CudaRuntime | Scope.Scope> =>
  Effect.withFiber((fiber) => {
    const runtime = Context.getUnsafe(fiber.context, CudaRuntime)
    const destroy = (refs: ReadonlyArray<PartitionRef>) =>
      Effect.forEach(refs, (ref) => released(runtime.partitionDestroy(ref)), { discard: true })
    return Effect.uninterruptibleMask((restore) =>
      Effect.map(
        Effect.acquireRelease(
          Effect.suspend(() => {
            let made: ReadonlyArray<PartitionRef> = []
            const onMade = (refs: ReadonlyArray<PartitionRef>) => {
              made = refs
            }
            const create = Effect.flatMap(
              resolveDevice(device),
              (index) => runtime.partitionCreate(index, sizes, { onMade })
            )
            return Effect.onError(restore(create), () => destroy(made))
          }),
          destroy
        ),
        (refs) => refs.map((ref): CudaPartition => new PartitionImpl(runtime, ref))
      )
    )
  })

/**
 * Runs an effect in a partition: on a pooled stream of the partition, with the partition as the default for the streams that it makes.
 *
 * **Details**
 *
 * Streams of `CudaStream.make` and `CudaStream.fromPool`, branches, task graphs, pipelines and recorded graphs inside belong to the partition,
 * unless they are of another device. The nodes of a graph stay in the partition in which they were recorded, whatever stream launches it.
 *
 * The stream is leased like one of `CudaStream.withPooledStream`, and not ordered against the one that was current.
 *
 * **Gotchas**
 *
 * Default streams, and streams of other code, are in no partition.
 *
 * **Example** (Small work beside large work)
 *
 * ```ts
 * import { CudaMemory, CudaPartition } from "effect-cuda"
 *
 * declare const partition: CudaPartition.CudaPartition
 * declare const buffer: CudaMemory.DeviceBuffer
 *
 * const cleared = CudaMemory.fill(buffer, 0).pipe(CudaPartition.within(partition))
 * ```
 *
 * @category regions
 * @since 0.1.0
 */
export const within: {
  (
    partition: CudaPartition,
    options?: Omit<PriorityOptions, "device" | "partition">
  ): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | CudaError, R | CudaRuntime>
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    partition: CudaPartition,
    options?: Omit<PriorityOptions, "device" | "partition">
  ): Effect.Effect<A, E | CudaError, R | CudaRuntime>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    partition: CudaPartition,
    options: Omit<PriorityOptions, "device" | "partition"> = {}
  ): Effect.Effect<A, E | CudaError, R | CudaRuntime> =>
    isCudaPartition(partition)
      ? withPooledStream(
        Effect.provideService(self, CurrentPartition, partition),
        { ...options, partition, device: partition.deviceIndex }
      )
      : refuseForced("CudaPartition.within", "partition", partition, "a partition")
)
