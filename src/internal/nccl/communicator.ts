/**
 * Communicators: their state, and what all of a service share.
 */
import * as Semaphore from "effect/Semaphore"
import { CudaError } from "../../CudaError.ts"
import type { CudaRuntimeService, LibraryHandleRef, ResourceState, StreamRef } from "../../layers/CudaRuntime.ts"
import { DeviceHandle, oneLine, unlessLive } from "../handles.ts"
import type { Nccl } from "./library.ts"
import type { NativeCalls } from "./native.ts"
import type { Meetings, Rendezvous } from "./simulated.ts"

/** What all communicators of a service use. */
export interface Shared {
  readonly runtime: CudaRuntimeService
  readonly library: Nccl
  /** Undefined on simulated devices. */
  readonly native: NativeCalls | undefined
  /** Whether collectives are enqueued by a communicator whose calls return once the work is on its stream. */
  readonly isDirect: boolean
  /** Where ranks meet on simulated devices. */
  readonly rendezvous: Rendezvous
}

let created = 0

/** The state of a communicator. */
export class CommunicatorRef {
  state: ResourceState = "live"
  /** Why it was aborted. */
  failure: CudaError | undefined
  /** In the order of creation, in which several are locked. */
  readonly number = ++created
  /** Held while its non-blocking communicator is busy. */
  readonly lock = Semaphore.makeUnsafe(1)
  /** Held while it is aborted. */
  readonly ending = Semaphore.makeUnsafe(1)
  /** The streams that have collectives of it. */
  readonly streams = new Set<StreamRef>()
  readonly shared: Shared
  readonly rank: number
  readonly size: number
  readonly deviceIndex: number
  /** The non-blocking communicator: it joins, splits and shrinks, and does what may wait for other ranks. */
  readonly joint: LibraryHandleRef
  /** The blocking one, whose work is on its stream when a call returns. */
  readonly direct: LibraryHandleRef | undefined
  /** Each as what a call uses. */
  readonly handlesOfJoint: ReadonlyArray<LibraryHandleRef>
  readonly handlesOfDirect: ReadonlyArray<LibraryHandleRef>
  /** Where its ranks meet on simulated devices. */
  readonly meetings: Meetings | undefined
  #lastStream: StreamRef | undefined
  constructor(
    shared: Shared,
    fields: Pick<CommunicatorRef, "rank" | "size" | "deviceIndex" | "joint" | "direct" | "meetings">
  ) {
    this.shared = shared
    this.rank = fields.rank
    this.size = fields.size
    this.deviceIndex = fields.deviceIndex
    this.joint = fields.joint
    this.direct = fields.direct
    this.handlesOfJoint = [fields.joint]
    this.handlesOfDirect = fields.direct === undefined ? this.handlesOfJoint : [fields.direct]
    this.meetings = fields.meetings
  }
  get runtime(): CudaRuntimeService {
    return this.shared.runtime
  }
  /** The handles, in the order in which they end. */
  get handles(): ReadonlyArray<LibraryHandleRef> {
    return this.direct === undefined ? [this.joint] : [this.direct, this.joint]
  }
  /** Notes a stream, and forgets those that are gone. */
  usedOn(stream: StreamRef): void {
    if (stream === this.#lastStream || stream.isRecording) return
    this.#lastStream = stream
    if (this.streams.has(stream)) return
    for (const other of this.streams) if (other.state === "released") this.streams.delete(other)
    this.streams.add(stream)
  }
  toString(): string {
    return `communicator of rank ${this.rank} of ${this.size} on device ${this.deviceIndex}`
  }
}

/** A communicator. */
export class CommunicatorImpl extends DeviceHandle<CommunicatorRef> {
  readonly "~effect-cuda/CudaNccl/Communicator" = "~effect-cuda/CudaNccl/Communicator" as const
  get rank(): number {
    return this.ref.rank
  }
  get size(): number {
    return this.ref.size
  }
  toString(): string {
    const { deviceIndex, rank, size } = this
    return oneLine("Communicator", `rank ${rank} of ${size}`, `device ${deviceIndex}`, unlessLive(this.ref))
  }
  toJSON() {
    const { deviceIndex, rank, size } = this
    return { _id: "Communicator", rank, size, deviceIndex, state: this.ref.state }
  }
}

export const makeCommunicator = (ref: CommunicatorRef): CommunicatorImpl => new CommunicatorImpl(ref.runtime, ref)

/** The failure of an operation on a communicator that was aborted or released. */
export const goneError = (operation: string, ref: CommunicatorRef): CudaError =>
  new CudaError({
    operation,
    deviceIndex: ref.deviceIndex,
    reason: { _tag: "ResourceReleased", resource: String(ref) },
    cause: ref.failure
  })
