/**
 * The resources of a simulated runtime: those of the shared operations, each with its counterpart in the model.
 */
import type { CUmemoryPool } from "../../cuda/handles.ts"
import type { Address, EventHandle, HostAddress, MemoryPoolRef, StreamHandle } from "../CudaRuntime.ts"
import {
  DeviceMemoryResource,
  EventResource,
  GrowableMemoryResource,
  HostMemoryResource,
  ManagedMemoryResource,
  MemoryPoolResource,
  StreamResource
} from "../shared/resources.ts"
import type { AnyMemoryResource, Owner, PartitionResource } from "../shared/resources.ts"
import type { EventState, Pool, Stream } from "./model/parts.ts"
import type { GrowableStorage, Storage } from "./model/Storage.ts"

export class SimulatedStream extends StreamResource {
  readonly part: Stream
  constructor(owner: Owner, part: Stream, origin: "owned" | "default" | "foreign", partition?: PartitionResource) {
    super(owner, {
      handle: part.handle as StreamHandle,
      id: part.id,
      deviceIndex: part.device.ordinal,
      priority: part.priority,
      nonBlocking: part.nonBlocking,
      origin
    }, partition)
    this.part = part
  }
}

export class SimulatedEvent extends EventResource {
  readonly part: EventState
  /** The event that it wraps. */
  wraps: SimulatedEvent | undefined
  /** The key of its interprocess handle, if it was exported. */
  sharedAs: { readonly key: string; readonly handle: Uint8Array } | undefined
  constructor(owner: Owner, part: EventState, handle: number, deviceIndex: number, flags: number) {
    super(owner, { handle: handle as EventHandle, deviceIndex, flags })
    this.part = part
  }
}

export class SimulatedDeviceMemory extends DeviceMemoryResource {
  readonly part: Storage
  constructor(owner: Owner, part: Storage, address: number, deviceIndex: number) {
    super(owner, address as Address, part.byteLength, deviceIndex)
    this.part = part
  }
}

export class SimulatedGrowableMemory extends GrowableMemoryResource {
  readonly part: GrowableStorage
  constructor(
    owner: Owner,
    part: GrowableStorage,
    address: number,
    deviceIndex: number,
    limits: Pick<GrowableMemoryResource, "granularity" | "maxBytes">
  ) {
    super(owner, address as Address, deviceIndex, limits)
    this.part = part
  }
}

export class SimulatedHostMemory extends HostMemoryResource {
  readonly part: Storage
  constructor(owner: Owner, part: Storage, address: number) {
    super(owner, address as HostAddress, part.touch())
    this.part = part
  }
}

export class SimulatedManagedMemory extends ManagedMemoryResource {
  readonly part: Storage
  constructor(owner: Owner, part: Storage, address: number, deviceIndex: number) {
    super(owner, address as Address, part.byteLength, deviceIndex)
    this.part = part
  }
  override get isGivenAway(): boolean {
    return this.part.isGivenAway
  }
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.state === "released" || this.isGivenAway ? nothing : this.part.touch()
  }
}

const nothing = new Uint8Array(0)

export class SimulatedPool extends MemoryPoolResource {
  readonly part: Pool
  constructor(
    owner: Owner,
    part: Pool,
    handle: CUmemoryPool,
    deviceIndex: number,
    origin: MemoryPoolRef["origin"]
  ) {
    super(owner, handle, deviceIndex, origin)
    this.part = part
  }
}

/** Narrow a resource without a check. All resources of a simulated runtime are simulated. */
export const streamPart = (stream: StreamResource): Stream => (stream as SimulatedStream).part
export const simulatedEvent = (event: EventResource): SimulatedEvent => event as SimulatedEvent
export const memoryPart = (memory: AnyMemoryResource): Storage =>
  (memory as SimulatedDeviceMemory | SimulatedGrowableMemory | SimulatedHostMemory | SimulatedManagedMemory).part
export const poolPart = (pool: MemoryPoolResource): Pool => (pool as SimulatedPool).part
