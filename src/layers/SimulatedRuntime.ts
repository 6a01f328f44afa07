/**
 * Simulated GPUs, in process and in `Clock` time: for tests, for examples, and for machines without a GPU.
 *
 * A discrete-event model of streams, events, copy engines, compute and memory. Copies move real bytes and take time
 * according to the bandwidth, kernels are TypeScript functions with a cost in virtual time, and operations answer as
 * the driver does. With `TestClock`, a test steps the GPUs through virtual time and observes any moment. Depends on the
 * shared runtime and the model.
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
import type { SimulatedArray, SimulatedPointer } from "./simulated/pointers.ts"
import { h200 } from "./simulated/profiles.ts"

export type {
  /**
   * The value that a kernel function receives for a parameter.
   *
   * @category models
   * @since 0.1.0
   */
  KernelValue,
  /**
   * The name of an operation in programs and failures, such as `CudaEvent.record`.
   *
   * @category models
   * @since 0.1.0
   */
  OperationName,
  /**
   * Memory behind a pointer argument whose elements have a declared type, as the kernel function sees it.
   *
   * @category models
   * @since 0.1.0
   */
  SimulatedArray,
  /**
   * A kernel of simulated devices, as a TypeScript function.
   *
   * @see {@link kernel} for typed arguments
   * @category models
   * @since 0.1.0
   */
  SimulatedKernel,
  /**
   * A launch, as the kernel function sees it.
   *
   * @category models
   * @since 0.1.0
   */
  SimulatedLaunch,
  /**
   * Memory behind a pointer argument, as the kernel function sees it.
   *
   * @category models
   * @since 0.1.0
   */
  SimulatedPointer
}

/**
 * Defines a kernel of simulated devices whose arguments are typed by its parameters.
 *
 * **Details**
 *
 * `run` does the work of the whole grid at once, when the virtual time of the launch has passed. A pointer's `load` and
 * `store` fault outside the buffer, as on a device. Its `view` is faster, but an ordinary typed array, which returns
 * `undefined` beyond its end. Pointers with an element type have that view as `array`.
 *
 * **Example** (A kernel that adds)
 *
 * ```ts
 * import { CudaParameter, SimulatedRuntime } from "effect-cuda"
 *
 * const add = SimulatedRuntime.kernel({
 *   parameters: [CudaParameter.pointerOf("f32"), CudaParameter.inputOf("f32"), CudaParameter.i32],
 *   cost: "20 micros",
 *   run: ({ args: [{ array: sum }, { array: other }, count] }) => {
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
 * Fixed times of the operations of a simulated device. Those without a value take no such time, except copies.
 *
 * @category options
 * @since 0.1.0
 */
export interface SimulatedLatencies {
  /** Of an upload, in addition to its transfer time. Default: `copyLatency`. */
  readonly upload?: Duration.Input | undefined
  /** Of a download. Default: `copyLatency`. */
  readonly download?: Duration.Input | undefined
  /** Of a copy within the device. Default: `copyLatency`. */
  readonly copy?: Duration.Input | undefined
  /** Of a copy between devices. Default: `copyLatency`. */
  readonly peerCopy?: Duration.Input | undefined
  readonly fill?: Duration.Input | undefined
  /** From the end of everything that a kernel comes after to its start. */
  readonly kernel?: Duration.Input | undefined
  /** The same for a kernel of a graph. Default: `kernel`. */
  readonly graphKernel?: Duration.Input | undefined
  /** How long recording an event with timing holds up its stream. */
  readonly timedRecord?: Duration.Input | undefined
  /** From the end of an event to that of the wait for it on another stream, if that stream had to wait. */
  readonly wait?: Duration.Input | undefined
  /** The same if one of the streams copies and the other one computes. Default: `wait`. */
  readonly waitAcrossEngines?: Duration.Input | undefined
}

/**
 * Options for a simulated device. The defaults describe a data center GPU with little memory.
 *
 * @category options
 * @since 0.1.0
 */
export interface SimulatedDeviceOptions {
  readonly name?: string | undefined
  /** Memory in bytes. Default: 16 GiB. A buffer takes up memory of the process only once it is used. */
  readonly memory?: number | undefined
  /** Default: 9.0. */
  readonly computeCapability?: { readonly major: number; readonly minor: number } | undefined
  /** Default: 2, one for uploads and for peer copies of its streams, and one for downloads. With 1, they take turns. */
  readonly copyEngines?: number | undefined
  /** Bytes per second between the host and the device, in each direction. Default: 50e9. */
  readonly hostBandwidth?: number | undefined
  /** Bytes per second from the device to the host, if they differ. Default: `hostBandwidth`. */
  readonly downloadBandwidth?: number | undefined
  /** Bytes per second of copies within the device. Default: 2e12. */
  readonly deviceBandwidth?: number | undefined
  /** Bytes per second of fills. Default: `deviceBandwidth`. */
  readonly fillBandwidth?: number | undefined
  /** Bytes per second between devices, in each direction; the slower end counts. Default: 200e9. */
  readonly peerBandwidth?: number | undefined
  /** The fixed time of every copy, in addition to its transfer time. Default: 5 µs. */
  readonly copyLatency?: Duration.Input | undefined
  /** Fixed times of each kind of operation. */
  readonly latencies?: SimulatedLatencies | undefined
  /** Default: from 0 (lowest) to -5 (highest). */
  readonly priorityRange?: PriorityRange | undefined
  /** How many kernels, fills and copies within the device run concurrently. Default: 128. */
  readonly concurrentKernels?: number | undefined
  /** Attributes that differ from those of the default device. */
  readonly attributes?: { readonly [A in DeviceAttribute]?: number } | undefined
}

/**
 * Options for the simulated machine.
 *
 * @category options
 * @since 0.1.0
 */
export interface SimulatedOptions {
  /** The number of devices, or the options of each. Default: 1. */
  readonly devices?: number | ReadonlyArray<SimulatedDeviceOptions> | undefined
  /** Whether a device can access the memory of a peer. Default: true. */
  readonly peerAccess?: boolean | ((deviceIndex: number, peer: number) => boolean) | undefined
  /** Whether devices have that access from the start, as with the option of `NativeRuntime`. Default: `"none"`. */
  readonly peers?: "none" | "all" | undefined
  /**
   * Bytes per second of copies from one device to another, by their indices, for machines whose links differ. Default: `peerBandwidth`.
   * Copies between devices without peer access go through the host instead.
   */
  readonly linkBandwidth?: ((from: number, to: number) => number) | undefined
  /** CUDA version of the driver. Default: 13000, which is CUDA 13.0. */
  readonly driverVersion?: number | undefined
  /** Limit on pinned host memory, in bytes. Default: no limit. */
  readonly hostMemory?: number | undefined
  /** The kernels of every module, by name, in place of those in an image. */
  readonly kernels?: Readonly<Record<string, SimulatedKernel>> | undefined
  /** The global variables of every module, by name: initial bytes, or a size in bytes. Each module has its own copies. */
  readonly globals?: Readonly<Record<string, Uint8Array | number>> | undefined
  /**
   * With `"none"`, operations only take time: copies and fills move no bytes, kernels and functions for native code do not run, and
   * device memory takes up no memory of the process. What is read from a device is zeros, or what the host's memory held before, and
   * conditions of graphs read zeros. Collectives of `CudaNccl` wait for no other rank, and take none of their time. For timelines of
   * programs whose data does not matter. Default: `"moved"`.
   */
  readonly data?: "moved" | "none" | undefined
  /** Whether to record every operation for `timeline`, which grows as long as the runtime lives. Default: false. */
  readonly recordTimeline?: boolean | undefined
}

/**
 * Options for devices that are like real ones, as measured.
 *
 * **Details**
 *
 * `h200` is an NVIDIA H200 (driver 580, CUDA 13.0, PCIe 5.0 × 16, NVLink): its attributes, memory, bandwidths and latencies. How well
 * its timelines match real ones, and what the model leaves out, is in `docs/simulator.md`. Change single options with a spread.
 *
 * **Gotchas**
 *
 * The time of a kernel is its own `cost`.
 *
 * **Example** (Two H200 with less memory)
 *
 * ```ts
 * import { SimulatedRuntime } from "effect-cuda"
 *
 * const device = { ...SimulatedRuntime.profiles.h200, memory: 8 * 2 ** 30 }
 *
 * const layer = SimulatedRuntime.layer({ devices: [device, device] })
 * ```
 *
 * @category options
 * @since 0.1.0
 */
export const profiles: { readonly h200: SimulatedDeviceOptions } = { h200 }

/**
 * An operation that a simulated device has completed. Times are in nanoseconds of virtual time.
 *
 * @category models
 * @since 0.1.0
 */
export interface TimelineEntry {
  readonly deviceIndex: number
  /** The stream's id; -1 for releases of memory on an internal stream of the runtime. */
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
 * Work for a simulated device.
 *
 * @category models
 * @since 0.1.0
 */
export interface Work {
  /** How long it takes in virtual time. Infinite for work that hangs. */
  readonly duration: Duration.Input
  /**
   * Runs when the work ends. If it throws, the work ends in a `LaunchFailed` fault, and the failures that follow have the thrown
   * value as their `cause`.
   */
  readonly run?: (() => void) | undefined
  /** The fault that the work ends in: a sticky status. */
  readonly fault?: StatusTag | undefined
}

/**
 * Controls the simulated devices of a runtime. `failNext`, `clear` and `pending` inject failures as `FaultInjection` does; an
 * injected fault destroys the contexts.
 *
 * @category models
 * @since 0.1.0
 */
export interface SimulatedControlService extends FaultInjectionService {
  /** Enqueues work on a stream. */
  readonly launch: (stream: StreamRef | { readonly ref: StreamRef }, work: Work) => Effect.Effect<void, CudaError>
  /**
   * Destroys the contexts of the runtime immediately, like a fault on this device: pending work never runs, and every later
   * call fails, on every device.
   */
  readonly lose: (deviceIndex: number, status: StatusTag) => Effect.Effect<void, CudaError>
  /** The current contents of a device buffer: not a copy, but the bytes that kernels and `run` read and write. */
  readonly bytes: (
    memory: DeviceMemoryRef | { readonly ref: DeviceMemoryRef }
  ) => Effect.Effect<Uint8Array<ArrayBuffer>, CudaError>
  /** The operations completed so far, in order of completion. Empty without `recordTimeline`. */
  readonly timeline: Effect.Effect<ReadonlyArray<TimelineEntry>>
  /** Nanoseconds of virtual time since the first simulated runtime with this clock was made. */
  readonly now: Effect.Effect<number>
  /** The number of operations that are enqueued and not yet complete, on all simulated devices with this clock. */
  readonly pendingOperations: Effect.Effect<number>
}

/**
 * Controls the simulated devices of the runtime it is provided with: enqueues work, injects failures, destroys contexts,
 * and reports what ran when.
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
 * Creates a simulated runtime and its control. They live as long as the scope.
 *
 * **Details**
 *
 * Virtual time is that of the `Clock` in the context. When the scope closes, the remaining streams are drained first. Fails with
 * `InvalidArgument` if an option is invalid.
 *
 * **Gotchas**
 *
 * Draining waits in virtual time as well: with `TestClock`, let work finish before its stream is released.
 *
 * The devices catch up with the clock only during operations and waits of the runtime: after `TestClock.adjust`, query or
 * synchronize before reading memory.
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
 * Provides `CudaRuntime` on simulated devices, and `SimulatedControl` to control them.
 *
 * **Details**
 *
 * Every other simulated runtime with the same `Clock` can open the interprocess events of this one, as if each runtime
 * were a process. Opening a handle fails with `InvalidContext` in the runtime that made it, with `NotSupported` if the
 * clocks differ, and with `InvalidHandle` if it is from another process.
 *
 * **Gotchas**
 *
 * A wait that can never end, such as for work that hangs, fails with `NeverFinishes` once nothing else is running. A GPU
 * would wait forever.
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
