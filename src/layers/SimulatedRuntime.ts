/**
 * Simulated GPUs, in process and in `Clock` time: for tests, for examples, and for machines without a GPU.
 *
 * Streams, events, copy engines, compute and memory are a discrete-event model. Data really moves, copies take their
 * size by the bandwidth, kernels are functions with a duration, and every answer is the driver's. With `TestClock` a
 * test steps the GPUs through virtual time and looks at every moment in between. Depends on the shared runtime and the
 * model.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { DeviceAttribute } from "../cuda/flags.ts"
import type { ParameterKind } from "../cuda/parameters.ts"
import type { StatusTag } from "../cuda/status.ts"
import type { CudaError } from "../CudaError.ts"
import { CudaRuntime } from "./CudaRuntime.ts"
import type { CudaRuntimeService, DeviceMemoryRef, PriorityRange, StreamRef } from "./CudaRuntime.ts"
import type { FaultInjectionService } from "./FaultInjection.ts"
import type { OperationName } from "./runtime/operations.ts"
import { faultsEndContexts, inject, Injection } from "./shared/injection.ts"
import * as Runtime from "./shared/Runtime.ts"
import { SimulatedBackend } from "./simulated/Backend.ts"
import { makeControl } from "./simulated/control.ts"
import type { KernelValue, SimulatedKernel, SimulatedLaunch } from "./simulated/kernelFunctions.ts"
import { resolve } from "./simulated/options.ts"
import type { SimulatedPointer } from "./simulated/pointers.ts"

export type {
  /**
   * What a kernel finds in place of a parameter.
   *
   * @category models
   * @since 0.1.0
   */
  KernelValue,
  /**
   * An operation as a program and its failures name it.
   *
   * @category models
   * @since 0.1.0
   */
  OperationName,
  /**
   * A kernel of simulated devices.
   *
   * @see {@link kernel} for one whose arguments are typed
   * @category models
   * @since 0.1.0
   */
  SimulatedKernel,
  /**
   * A launch of a kernel, as the kernel sees it.
   *
   * @category models
   * @since 0.1.0
   */
  SimulatedLaunch,
  /**
   * Memory as a kernel sees it, from where its argument points to.
   *
   * @category models
   * @since 0.1.0
   */
  SimulatedPointer
}

/**
 * Types a kernel of simulated devices: the arguments of `run` follow from its parameters.
 *
 * **Details**
 *
 * `run` does the work of the whole grid, at the end of the launch's virtual time. `load` and `store` of a pointer end the
 * kernel in a fault outside the buffer, as a device does; `view` is faster, and an ordinary typed array.
 *
 * **Example** (A kernel that adds)
 *
 * ```ts
 * import { CudaParameter, SimulatedRuntime } from "effect-cuda"
 *
 * const add = SimulatedRuntime.kernel({
 *   parameters: [CudaParameter.pointer, CudaParameter.input, CudaParameter.i32],
 *   cost: "20 micros",
 *   run: ({ args: [to, from, count] }) => {
 *     const [sum, other] = [to.view(Float32Array), from.view(Float32Array)]
 *     for (let index = 0; index < count; index++) sum[index]! += other[index]!
 *   }
 * })
 *
 * const layer = SimulatedRuntime.layer({ kernels: { add } })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const kernel = <const Parameters extends ReadonlyArray<ParameterKind>>(
  definition: SimulatedKernel<Parameters>
): SimulatedKernel<Parameters> => definition

/**
 * Options for a simulated device. The defaults describe a data centre GPU with little memory.
 *
 * @category options
 * @since 0.1.0
 */
export interface SimulatedDeviceOptions {
  readonly name?: string | undefined
  /** Memory in bytes; 16 GiB by default. Takes memory of the process only where it is touched. */
  readonly memory?: number | undefined
  /** 9.0 by default. */
  readonly computeCapability?: { readonly major: number; readonly minor: number } | undefined
  /** 2 by default: one for uploads and peer copies, one for downloads. With 1 they take turns. */
  readonly copyEngines?: number | undefined
  /** Bytes per second between host and device, each way; 50e9 by default. */
  readonly hostBandwidth?: number | undefined
  /** Bytes per second of fills and of copies within the device; 2e12 by default. */
  readonly deviceBandwidth?: number | undefined
  /** Bytes per second between devices; 200e9 by default. */
  readonly peerBandwidth?: number | undefined
  /** What every copy takes besides its size by the bandwidth; 5 µs by default. */
  readonly copyLatency?: Duration.Input | undefined
  /** From 0 to -5 by default. */
  readonly priorityRange?: PriorityRange | undefined
  /** How much work, fills and copies within the device run at once; 128 by default. */
  readonly concurrentKernels?: number | undefined
  /** Answers that differ from the default device's. */
  readonly attributes?: { readonly [A in DeviceAttribute]?: number } | undefined
}

/**
 * Options for the simulated machine.
 *
 * @category options
 * @since 0.1.0
 */
export interface SimulatedOptions {
  /** How many devices, or what each is like; 1 by default. */
  readonly devices?: number | ReadonlyArray<SimulatedDeviceOptions> | undefined
  /** Whether a device reaches another one's memory; true by default. */
  readonly peerAccess?: boolean | ((deviceIndex: number, peer: number) => boolean) | undefined
  /** CUDA version of the driver: 13000, the default, is 13.0. */
  readonly driverVersion?: number | undefined
  /** Bytes of pinned host memory there are; unlimited by default. */
  readonly hostMemory?: number | undefined
  /** The kernels that every module has, by name: what a GPU finds in an image. */
  readonly kernels?: Readonly<Record<string, SimulatedKernel>> | undefined
  /** The global variables that every module has, by name: their bytes at first, or how many. Each module has its own. */
  readonly globals?: Readonly<Record<string, Uint8Array | number>> | undefined
  /** Keeps every operation for `timeline`; off by default, since it grows for as long as the runtime lives. */
  readonly recordTimeline?: boolean | undefined
}

/**
 * An operation that a simulated device has done. Times are nanoseconds of virtual time.
 *
 * @category models
 * @since 0.1.0
 */
export interface TimelineEntry {
  readonly deviceIndex: number
  /** The stream's id; -1 for releases of memory, which are on a stream of the runtime's own. */
  readonly streamId: number
  readonly kind:
    | "hostToDevice"
    | "deviceToHost"
    | "deviceToDevice"
    | "peerToPeer"
    | "fill"
    | "prefetch"
    | "allocate"
    | "work"
    | "record"
    | "wait"
    | "release"
  readonly bytes: number
  readonly start: number
  readonly end: number
}

/**
 * Work of a simulated device.
 *
 * @category models
 * @since 0.1.0
 */
export interface Work {
  /** Virtual time it takes; infinite for a kernel that hangs. */
  readonly duration: Duration.Input
  /**
   * What it does, at its end. When it throws, the work ends in a `LaunchFailed` fault, and the failures that follow have what it
   * threw as their `cause`.
   */
  readonly run?: (() => void) | undefined
  /** The fault it ends in: a status that ends the contexts. */
  readonly fault?: StatusTag | undefined
}

/**
 * Steers the simulated devices. `failNext`, `clear` and `pending` inject failures as `FaultInjection` does; an injected fault
 * ends the contexts.
 *
 * @category models
 * @since 0.1.0
 */
export interface SimulatedControlService extends FaultInjectionService {
  /** Enqueues work on a stream. */
  readonly launch: (stream: StreamRef | { readonly ref: StreamRef }, work: Work) => Effect.Effect<void, CudaError>
  /**
   * Ends the contexts of the runtime at once, as a fault on this device does: pending work never runs, and every later call
   * fails, on every device.
   */
  readonly lose: (deviceIndex: number, status: StatusTag) => Effect.Effect<void, CudaError>
  /** The content of a device buffer at this moment, not a copy: what `run` reads and writes. */
  readonly bytes: (
    memory: DeviceMemoryRef | { readonly ref: DeviceMemoryRef }
  ) => Effect.Effect<Uint8Array<ArrayBuffer>, CudaError>
  /** What was done so far, in the order of ending; empty without `recordTimeline`. */
  readonly timeline: Effect.Effect<ReadonlyArray<TimelineEntry>>
  /** Nanoseconds of virtual time since the first simulated runtime of this clock was made. */
  readonly now: Effect.Effect<number>
  /** How many operations are enqueued and not done, on all simulated devices of this clock. */
  readonly pendingOperations: Effect.Effect<number>
}

/**
 * Steers the simulated devices of the runtime it is provided with: launches work, makes calls fail, ends contexts, and
 * shows what was done.
 *
 * **Example** (Work of 3 ms, stepped through)
 *
 * ```ts
 * import { CudaStream, SimulatedRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 * import * as TestClock from "effect/testing/TestClock"
 *
 * const program = Effect.gen(function*() {
 *   const control = yield* SimulatedRuntime.SimulatedControl
 *   const stream = yield* CudaStream.make()
 *   yield* control.launch(stream, { duration: "3 millis" })
 *   yield* TestClock.adjust("2 millis")
 *   const early = yield* CudaStream.query(stream) // false
 *   yield* TestClock.adjust("1 millis")
 *   const late = yield* CudaStream.query(stream) // true
 *   return [early, late]
 * }).pipe(Effect.scoped, Effect.provide(SimulatedRuntime.layer()), Effect.provide(TestClock.layer()))
 * ```
 *
 * @category services
 * @since 0.1.0
 */
export class SimulatedControl extends Context.Service<SimulatedControl, SimulatedControlService>()(
  "effect-cuda/SimulatedRuntime/SimulatedControl"
) {}

/**
 * Makes a simulated machine, and what steers it. Fails with `InvalidArgument` for options that cannot be meant.
 *
 * Virtual time is the `Clock` that is current here. The scope releases the runtime: what is left is drained first.
 *
 * **Gotchas**
 *
 * Draining waits in virtual time like everything else: with `TestClock`, let work finish before its stream is released.
 *
 * Data moves when an operation of the runtime, or a wait, lets virtual time pass: after `TestClock.adjust`, query or
 * synchronize before looking into memory.
 *
 * **Example** (A machine without a layer)
 *
 * ```ts
 * import { SimulatedRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const names = Effect.gen(function*() {
 *   const { runtime } = yield* SimulatedRuntime.make({ devices: 2 })
 *   return runtime.devices.map((device) => device.name)
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (
  options: SimulatedOptions = {}
): Effect.Effect<
  { readonly runtime: CudaRuntimeService; readonly control: SimulatedControlService },
  CudaError,
  Scope.Scope
> =>
  Effect.gen(function*() {
    const resolved = yield* resolve(options)
    const clock = yield* Clock.clockWith(Effect.succeed)
    const context = yield* Effect.context<never>()
    const backend = new SimulatedBackend(resolved, clock, context)
    const injection = new Injection()
    const service = yield* Runtime.make(backend)
    faultsEndContexts(service, (device, status) => backend.endContext(device, status))
    return { runtime: inject(service, injection), control: makeControl(backend, injection) }
  })

/**
 * Provides `CudaRuntime` on simulated devices, and `SimulatedControl` to steer them.
 *
 * **Details**
 *
 * Interprocess events can be opened by every other simulated runtime of the process that has the same `Clock`, as if each
 * runtime were a process. A handle of the runtime itself is `InvalidContext`, one of another clock `NotSupported`, one of
 * another process `InvalidHandle`.
 *
 * **Gotchas**
 *
 * A wait that can never end, for work that hangs, fails once nothing else is running: a GPU would wait for ever.
 *
 * **Example** (A program without a GPU)
 *
 * ```ts
 * import { CudaEvent, CudaStream, SimulatedRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const stream = yield* CudaStream.make()
 *   const event = yield* CudaEvent.make()
 *   yield* CudaEvent.record(event, stream)
 *   yield* CudaEvent.synchronize(event)
 * }).pipe(Effect.scoped, Effect.provide(SimulatedRuntime.layer({ devices: 2 })))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: SimulatedOptions = {}): Layer.Layer<CudaRuntime | SimulatedControl, CudaError> =>
  Layer.effectContext(
    Effect.map(
      make(options),
      ({ control, runtime }) => Context.make(CudaRuntime, runtime).pipe(Context.add(SimulatedControl, control))
    )
  )
