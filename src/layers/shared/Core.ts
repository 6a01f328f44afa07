/**
 * The state that the operations of a runtime share: its backend, live resources, the first fault, pending waits and
 * opened devices.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Semaphore from "effect/Semaphore"
import { notReady, success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import { CurrentWaitOptions } from "../CudaRuntime.ts"
import type { WaitOptions } from "../CudaRuntime.ts"
import type { Backend } from "./Backend.ts"
import { fromStatus, refuse, refuseArgument } from "./failures.ts"
import type { FaultOrigins } from "./failures.ts"
import type { GraphExecResource } from "./graphNodes.ts"
import { measureWait } from "./measure.ts"
import type { MeasuredWait } from "./measure.ts"
import type { KernelCode, ModuleResource } from "./moduleResources.ts"
import type { Shares } from "./partitions.ts"
import { connect } from "./peers.ts"
import type {
  DeviceMemoryResource,
  EventResource,
  HandleResource,
  HostMemoryResource,
  MemoryPoolResource,
  PartitionResource,
  StreamResource
} from "./resources.ts"
import { Running } from "./Running.ts"
import type { Cancel, WaitStage, Watch } from "./waits.ts"
import { WeakValues } from "./WeakValues.ts"

const mostAcquired = 1_000_000

export class Core {
  readonly backend: Backend
  readonly origins: FaultOrigins = { first: undefined }
  readonly streams = new Set<StreamResource>()
  readonly defaultStreams = new Map<string, StreamResource>()
  readonly events = new Set<EventResource>()
  readonly deviceMemory = new Set<DeviceMemoryResource>()
  readonly hostMemory = new Set<HostMemoryResource>()
  readonly modules = new Set<ModuleResource>()
  /** Modules of the runtime itself. */
  readonly ownModules = new Set<ModuleResource>()
  /** The kernel that passes values to conditions of graphs, once it is loaded. */
  conditionSetter: KernelCode | undefined
  /** Held while it is loaded. */
  readonly settingUp = Semaphore.makeUnsafe(1)
  /** Pools created by the program. */
  readonly pools = new Set<MemoryPoolResource>()
  /** Descriptors that stand for shared pools. */
  readonly descriptors = new Set<number>()
  readonly graphs = new Set<GraphExecResource>()
  readonly partitions = new Set<PartitionResource>()
  /** What the partitions of each device have left, once one was made there. */
  readonly shares = new Map<number, Shares>()
  /** Handles of libraries. */
  readonly handles = new Set<HandleResource>()
  /** Calls of libraries on pool threads, and releases of handles. */
  readonly libraryCalls = new Running()
  /** The number of recordings in progress. */
  recordings = 0
  /** Fails every pending wait when the runtime is released. */
  readonly waits = new Set<() => void>()
  /** Streams wrapped by the program. Held weakly. */
  readonly foreignStreams = new WeakValues<string, StreamResource>()
  /** Events wrapped by the program, in the order of wrapping. Held weakly. */
  readonly foreignEvents = new WeakValues<number, EventResource>()
  /** The number of events that were wrapped. */
  wrapped = 0
  /** Held by what spans turns of the event loop and must end before the runtime is released: pinning memory, and making graphs. */
  readonly acquiring = Semaphore.makeUnsafe(mostAcquired)
  closed = false
  /** True once the pending waits have been failed: the backend is closing, and no wait may begin. */
  ended = false
  readonly #opened: Array<boolean>
  readonly #opening: ReadonlyArray<Semaphore.Semaphore>

  constructor(backend: Backend) {
    this.backend = backend
    this.#opened = backend.devices.all.map(() => false)
    this.#opening = backend.devices.all.map(() => Semaphore.makeUnsafe(1))
  }

  /** The failure for a status that the backend has just returned. */
  fail(operation: string, status: number, subject: { readonly deviceIndex: number }): Effect.Effect<never, CudaError> {
    return Effect.fail(this.error(operation, status, subject.deviceIndex, String(subject)))
  }

  /** The failure for a status of a call on a device that has not produced a resource. */
  failOn(operation: string, status: number, deviceIndex: number, subject: string): Effect.Effect<never, CudaError> {
    return Effect.fail(this.error(operation, status, deviceIndex, subject))
  }

  error(operation: string, status: number, deviceIndex: number, subject: string, call?: string): CudaError {
    return fromStatus(this.backend, this.origins, status, {
      operation,
      deviceIndex,
      subject,
      ...(call === undefined ? {} : { call })
    })
  }

  /** The answer to a query: true for 0, false for "not ready", a failure for any other status. */
  answer(
    operation: string,
    status: number,
    subject: { readonly deviceIndex: number }
  ): Effect.Effect<boolean, CudaError> {
    if (status === success) return succeedTrue
    return status === notReady ? succeedFalse : this.fail(operation, status, subject)
  }

  /** Runs a driver call on a device: checks the device index, and opens the device on first use. */
  onDevice<A>(
    operation: string,
    deviceIndex: number,
    call: () => Effect.Effect<A, CudaError>
  ): Effect.Effect<A, CudaError> {
    return Effect.suspend(() => this.whenOpen(operation, deviceIndex, call))
  }

  /** Like `onDevice`, for use inside an effect that is being evaluated. */
  whenOpen<A>(
    operation: string,
    deviceIndex: number,
    call: () => Effect.Effect<A, CudaError>
  ): Effect.Effect<A, CudaError> {
    const refused = this.refuseDevice(operation, "device", deviceIndex)
    if (refused !== undefined) return refused
    if (this.#opened[deviceIndex] === true) return call()
    const opened = this.#open(operation, deviceIndex)
    return Effect.flatMap(opened, () => this.refuseDevice(operation, "device", deviceIndex) ?? call())
  }

  /** Fails for an index that has no device, and after the runtime was released. */
  refuseDevice(operation: string, argument: string, deviceIndex: number): Effect.Effect<never, CudaError> | undefined {
    if (this.closed) return refuse(operation, { _tag: "ResourceReleased", resource: "the runtime" })
    const count = this.backend.devices.all.length
    if (Number.isInteger(deviceIndex) && deviceIndex >= 0 && deviceIndex < count) return undefined
    return refuseArgument(operation, argument, deviceIndex, `a device index from 0 to ${count - 1}`)
  }

  #open(operation: string, deviceIndex: number): Effect.Effect<void, CudaError> {
    const open = Effect.suspend((): Effect.Effect<void, CudaError> => {
      if (this.#opened[deviceIndex] === true) return Effect.void
      if (this.closed) return refuse(operation, { _tag: "ResourceReleased", resource: "the runtime" })
      return Effect.matchEffect(this.backend.devices.open(deviceIndex), {
        onSuccess: () => {
          const others = [...this.#opened.keys()].filter((index) => this.#opened[index] === true)
          this.#opened[deviceIndex] = true
          return connect(this, deviceIndex, others)
        },
        onFailure: ({ call, status }) =>
          Effect.fail(this.error(operation, status, deviceIndex, `device ${deviceIndex}`, call))
      })
    })
    return Effect.uninterruptible(this.#opening[deviceIndex]!.withPermit(open))
  }

  /** Waits for devices being opened, and for what is being acquired. Nothing new starts once `closed` is set. */
  readonly whenQuiet: Effect.Effect<void> = Effect.suspend(() =>
    Effect.andThen(
      Effect.forEach(this.#opening, (opening) => opening.withPermit(Effect.void), { discard: true }),
      this.acquiring.withPermits(mostAcquired)(Effect.void)
    )
  )

  /**
   * Suspends the fiber until the watch ends. Interruption cancels the watch. The fiber may yield before the watch begins, and the
   * resource may be released meanwhile, so `refuseGone` checks again.
   */
  wait(
    operation: string,
    deviceIndex: number,
    subject: string,
    watch: Watch,
    refuseGone: () => Effect.Effect<never, CudaError> | undefined = () => undefined
  ): Effect.Effect<void, CudaError> {
    return Effect.withFiber((fiber) =>
      Effect.callback((resume) => {
        const options = fiber.getRef(CurrentWaitOptions)
        const refused = refuseGone() ?? (this.ended ? this.#refuseWait(operation, subject) : undefined) ??
          refusePollFor(operation, options)
        if (refused !== undefined) return resume(refused)
        let cancel: Cancel = noCancel
        let measured: MeasuredWait | undefined
        const end = (result: Effect.Effect<void, CudaError>, stage?: WaitStage) => {
          if (!this.waits.delete(abandon)) return
          measured?.(stage)
          resume(result)
        }
        const abandon = () => {
          cancel()
          end(this.#refuseWait(operation, subject))
        }
        this.waits.add(abandon)
        cancel = watch((status, stage) => {
          end(
            status === success ? Effect.void : Effect.fail(this.error(operation, status, deviceIndex, subject)),
            stage
          )
        }, options)
        if (this.waits.has(abandon)) measured = measureWait(fiber.context, fiber.getRef(Clock.Clock))
        return Effect.sync(() => {
          if (this.waits.delete(abandon)) measured?.("interrupted")
          cancel()
        })
      })
    )
  }

  #refuseWait(operation: string, subject: string): Effect.Effect<never, CudaError> {
    return refuse(operation, { _tag: "ResourceReleased", resource: `the runtime that waited for ${subject}` })
  }
}

const refusePollFor = (operation: string, { pollFor }: WaitOptions): Effect.Effect<never, CudaError> | undefined =>
  pollFor === undefined || Option.isSome(Duration.fromInput(pollFor))
    ? undefined
    : refuseArgument(operation, "pollFor", pollFor, "a duration")

const noCancel: Cancel = () => {}
const succeedTrue = Effect.succeed(true)
const succeedFalse = Effect.succeed(false)
