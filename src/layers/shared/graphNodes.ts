/**
 * Graphs as data: the nodes of a recording, what they do, and where each launch finds their memory and arguments. The
 * backends turn them into driver graphs or simulated work.
 */
import type * as References from "effect/References"
import { scalarWriters, setAddress } from "../../cuda/parameters.ts"
import type { ScalarName } from "../../cuda/parameters.ts"
import type {
  Address,
  ForeignSimulation,
  GraphCondition,
  GraphExecRef,
  GraphMemoryParameter,
  GraphNodeRef,
  GraphParameter,
  GraphRef,
  GraphRegionRef,
  GraphScalarRef,
  HostAddress,
  MemoryRange,
  ResourceState
} from "../CudaRuntime.ts"
import { counted } from "../runtime/words.ts"
import type { CapturedGraph } from "./captures.ts"
import type { RowsTransfer, Transfer } from "./copies.ts"
import type { KernelCode, KernelResource, ModuleResource } from "./moduleResources.ts"
import { DeviceMemoryResource, HostMemoryResource } from "./resources.ts"
import type {
  AnyMemoryResource,
  EventResource,
  HandleResource,
  Owner,
  PartitionResource,
  StreamResource
} from "./resources.ts"

/** The recording that a placeholder belongs to. */
export interface SlotOwner {
  readonly state: "recording" | "ended"
  readonly owner: Owner
}

/** What makes memory a placeholder: each launch or each instance supplies the memory. */
export interface Slot {
  readonly recording: SlotOwner
  /** The index among the memory that is bound. */
  readonly index: number
  /** What it stands for, for example `parameter "input"`. */
  readonly name: string
}

/** Placeholders have fake addresses, which the driver never sees in a copy or a fill. */
const fakeAddress = 0x10_0000

export const devicePlaceholder = (slot: Slot, byteLength: number, deviceIndex: number): DeviceMemoryResource =>
  placed(new DeviceMemoryResource(slot.recording.owner, fakeAddress as Address, byteLength, deviceIndex), slot)

export const hostPlaceholder = (slot: Slot, byteLength: number): HostMemoryResource =>
  placed(new HostMemoryResource(slot.recording.owner, fakeAddress as HostAddress, nothing, byteLength), slot)

const placed = <Memory extends AnyMemoryResource>(memory: Memory, slot: Slot): Memory => {
  memory.slot = slot
  return memory
}

const nothing = new Uint8Array(0)

/** A scalar parameter, as an argument of a recorded launch. */
export class GraphScalar implements GraphScalarRef {
  readonly recording: SlotOwner
  /** Its index among the parameters. */
  readonly index: number
  readonly scalar: ScalarName
  readonly name: string
  constructor(recording: SlotOwner, index: number, scalar: ScalarName, name: string) {
    this.recording = recording
    this.index = index
    this.scalar = scalar
    this.name = name
  }
  toString(): string {
    return `parameter ${this.name} (${this.scalar})`
  }
}

export const isMemoryParameter = (parameter: GraphParameter): parameter is GraphMemoryParameter =>
  "parameter" in parameter

/** Memory that a node uses. */
export interface NodeRange extends MemoryRange {
  readonly memory: AnyMemoryResource
}

/** The dimensions and attributes of a recorded launch. */
export interface RecordedShape {
  readonly gridX: number
  readonly gridY: number
  readonly gridZ: number
  readonly blockX: number
  readonly blockY: number
  readonly blockZ: number
  readonly sharedBytes: number
  readonly clustered: boolean
  readonly clusterX: number
  readonly clusterY: number
  readonly clusterZ: number
  readonly cooperative: boolean
  readonly programmatic: boolean
}

/** A pointer among recorded arguments; without memory, a raw address or null. */
export interface RecordedPointer {
  readonly memory: AnyMemoryResource | undefined
  readonly offset: number
  readonly byteLength: number
  /** Where its address is among the bytes of the arguments. */
  readonly at: number
}

/** A scalar parameter among recorded arguments. */
export interface RecordedScalar {
  readonly index: number
  readonly scalar: ScalarName
  readonly at: number
}

/** A recorded launch, with its arguments in C layout. */
export interface KernelWork {
  readonly kind: "kernel"
  readonly kernel: KernelResource
  readonly shape: RecordedShape
  /** The priority of the stream. */
  readonly priority: number
  /** The partition of the stream. */
  readonly partition: PartitionResource | undefined
  /** Never changed. */
  readonly bytes: Uint8Array<ArrayBuffer>
  readonly pointers: ReadonlyArray<RecordedPointer>
  readonly scalars: ReadonlyArray<RecordedScalar>
  /** True if it may start before its only dependency, a kernel, has finished (programmatic dependent launch). */
  readonly startsEarly: boolean
}

export interface FillWork {
  readonly kind: "fill"
  readonly memory: DeviceMemoryResource
  readonly offset: number
  readonly value: number
  readonly bits: 8 | 16 | 32
  readonly count: number
}

/** A condition on a value of 32 bits in device memory. */
export interface ConditionalWork {
  readonly kind: "conditional"
  readonly condition: GraphCondition
  readonly value: NodeRange
  /** By body, the indices of its nodes. */
  readonly bodies: ReadonlyArray<ReadonlyArray<number>>
  /** The kernel that passes the value to the driver; undefined on simulated devices. */
  readonly setter: KernelCode | undefined
}

/** Work of other native code, captured by the driver. */
export interface CapturedWork {
  readonly kind: "graph"
  readonly captured: CapturedGraph
  /** The priority of the stream. */
  readonly priority: number
  /** The partition of the stream. */
  readonly partition: PartitionResource | undefined
  readonly simulate: ForeignSimulation | undefined
  /** The handles of libraries that it uses. */
  readonly handles: ReadonlyArray<HandleResource>
  /** What keeps those that only graphs use. */
  readonly keepers: ReadonlyArray<object | undefined>
}

/** Where a region begins or ends. Does nothing, except in instances that measure regions. */
export interface MarkWork {
  readonly kind: "mark"
  /** The same object in both marks of a region. */
  readonly region: GraphRegionRef
  readonly end: "begin" | "end"
}

/** What a node does. */
export type NodeWork =
  | KernelWork
  | ConditionalWork
  | FillWork
  | CapturedWork
  | MarkWork
  | { readonly kind: "copy"; readonly transfer: Transfer }
  | { readonly kind: "copy2D"; readonly transfer: RowsTransfer }
  | { readonly kind: "record"; readonly event: EventResource }

export class GraphNode implements GraphNodeRef {
  readonly index: number
  readonly work: NodeWork
  readonly name: string
  readonly operation: string
  /** Indices of earlier nodes in the same body. */
  readonly dependencies: ReadonlyArray<number>
  readonly reads: ReadonlyArray<NodeRange>
  readonly writes: ReadonlyArray<NodeRange>
  /** Set when the conditional node is recorded, after its bodies. */
  inside: GraphNodeRef["inside"]
  /** The innermost span or named function around the operation. */
  readonly stack: References.StackFrame | undefined
  constructor(
    index: number,
    fields: Pick<GraphNode, "work" | "operation" | "reads" | "writes">,
    name: string,
    dependencies: ReadonlyArray<number>,
    stack: References.StackFrame | undefined
  ) {
    this.index = index
    this.work = fields.work
    this.name = name
    this.operation = fields.operation
    this.dependencies = dependencies
    this.reads = fields.reads
    this.writes = fields.writes
    this.inside = undefined
    this.stack = stack
  }
  get kind(): NodeWork["kind"] {
    return this.work.kind
  }
  get frame(): string | undefined {
    return describeFrame(this.stack)
  }
  /** The same node among nodes with other indices. */
  renumbered(indexOf: (index: number) => number): GraphNode {
    const { dependencies, index, inside, name, stack } = this
    const work = withIndices(this.work, indexOf)
    const node = new GraphNode(indexOf(index), { ...this, work }, name, dependencies.map(indexOf), stack)
    if (inside !== undefined) node.inside = { ...inside, nodeIndex: indexOf(inside.nodeIndex) }
    return node
  }
  toString(): string {
    return `node ${this.index} (${this.name})`
  }
}

/** Work whose nodes have other indices: a condition refers to those of its bodies. */
export const withIndices = (work: NodeWork, indexOf: (index: number) => number): NodeWork =>
  work.kind === "conditional" ? { ...work, bodies: work.bodies.map((body) => body.map(indexOf)) } : work

/** Whether a node has a priority, so that launches use those of the nodes instead of that of the stream. */
export const hasPriority = ({ work }: GraphNode): boolean => "priority" in work && work.priority !== 0

/** The handles of libraries that nodes use, each once. */
export const handlesOf = (nodes: ReadonlyArray<GraphNode>): ReadonlyArray<HandleResource> => {
  const handles = new Set<HandleResource>()
  for (const { work } of nodes) if (work.kind === "graph") { for (const handle of work.handles) handles.add(handle) }
  return Array.from(handles)
}

/** The name of a frame and where it is. */
export const describeFrame = (frame: References.StackFrame | undefined): string | undefined => {
  if (frame === undefined) return undefined
  const at = frame.stack()?.trim().split("\n")[0]?.replace(/^at /, "")
  return at === undefined || at === "" ? frame.name : `${frame.name} (${at})`
}

/** A buffer allocated in the program: which bytes of the scratch memory it occupies. */
export interface ScratchPart {
  readonly slot: number
  readonly offset: number
}

const isGrowable = ({ memory }: NodeRange): boolean => memory.kind === "device" && memory.isGrowable

/** True for memory of another device. */
export const isPeer = (memory: DeviceMemoryResource, deviceIndex: number): boolean =>
  !memory.isManaged && memory.deviceIndex !== deviceIndex

/** A recorded graph. */
export class GraphResource implements GraphRef {
  readonly owner: Owner
  readonly deviceIndex: number
  readonly nodes: ReadonlyArray<GraphNode>
  readonly parameters: ReadonlyArray<readonly [name: string, kind: GraphParameter]>
  /** By parameter, how failures name its value. */
  readonly valueNames: ReadonlyArray<string>
  /** Whether it has copies, whose ends may overlap when values change. */
  readonly hasCopies: boolean
  /** By parameter, the slot of its memory; undefined for a scalar. */
  readonly slotOf: ReadonlyArray<number | undefined>
  /** By parameter, the nodes that use it. */
  readonly usersOf: ReadonlyArray<ReadonlyArray<number>>
  /** By parameter, what the offset of its memory must be a multiple of. */
  readonly alignmentOf: ReadonlyArray<number>
  /** The number of slots: parameters and scratch buffers. */
  readonly slots: number
  readonly scratch: ReadonlyArray<ScratchPart>
  readonly scratchBytes: number
  /** The memory outside the graph that it uses, each once. */
  readonly memories: ReadonlyArray<AnyMemoryResource>
  /** Those of other devices. */
  readonly peers: ReadonlyArray<DeviceMemoryResource>
  readonly modules: ReadonlyArray<ModuleResource>
  /** The partitions that its kernels run in, each once. */
  readonly partitions: ReadonlyArray<PartitionResource>
  /** The handles of libraries that it uses, each once. */
  readonly handles: ReadonlyArray<HandleResource>
  /** The events that it records, in the order of recording. */
  readonly events: ReadonlyArray<EventResource>
  /** True without partitions, handles, events, and growable memory: launches look at little then, since little is in the cache. */
  readonly isPlain: boolean
  /** All bytes that it reads and writes, merged. Scratch memory is left out. */
  readonly reads: ReadonlyArray<NodeRange>
  readonly writes: ReadonlyArray<NodeRange>
  /** Those of growable memory, which may have shrunk since. */
  readonly growable: ReadonlyArray<NodeRange>
  readonly regions: ReadonlyArray<GraphRegionRef>
  readonly unmeasured: number
  /** By mark of a region that can be measured, the index of its event: two per region, in the order of `regions`. */
  readonly marks: ReadonlyMap<number, number>
  readonly #changes: ReadonlyArray<GraphChange>
  #lastChange: GraphChange = { parameters: [], nodes: [] }
  constructor(
    owner: Owner,
    fields: Pick<
      GraphResource,
      | "deviceIndex"
      | "nodes"
      | "parameters"
      | "slotOf"
      | "usersOf"
      | "alignmentOf"
      | "slots"
      | "scratch"
      | "scratchBytes"
      | "memories"
      | "modules"
      | "partitions"
      | "handles"
      | "events"
      | "reads"
      | "writes"
      | "regions"
      | "unmeasured"
      | "marks"
    >
  ) {
    this.owner = owner
    this.deviceIndex = fields.deviceIndex
    this.nodes = fields.nodes
    this.parameters = fields.parameters
    this.hasCopies = fields.nodes.some(({ work }) => work.kind === "copy" || work.kind === "copy2D")
    this.valueNames = fields.parameters.map(([name]) => `values.${name}`)
    this.slotOf = fields.slotOf
    this.usersOf = fields.usersOf
    this.#changes = fields.usersOf.map((nodes, parameter) => ({ parameters: [parameter], nodes }))
    this.alignmentOf = fields.alignmentOf
    this.slots = fields.slots
    this.scratch = fields.scratch
    this.scratchBytes = fields.scratchBytes
    this.memories = fields.memories
    this.peers = fields.memories.filter((memory) => memory.kind === "device")
      .filter((memory) => isPeer(memory, fields.deviceIndex))
    this.modules = fields.modules
    this.partitions = fields.partitions
    this.handles = fields.handles
    this.events = fields.events
    this.reads = fields.reads
    this.writes = fields.writes
    this.growable = [...fields.reads, ...fields.writes].filter(isGrowable)
    const { events, growable, handles, partitions } = this
    this.isPlain = events.length + growable.length + handles.length + partitions.length === 0
    this.regions = fields.regions
    this.unmeasured = fields.unmeasured
    this.marks = fields.marks
  }
  /** The change of some parameters. Those of one parameter are kept, and the last one of several, since launches change the same ones. */
  changeOf(parameters: ReadonlyArray<number>): GraphChange {
    if (parameters.length === 1) return this.#changes[parameters[0]!]!
    if (areSame(this.#lastChange.parameters, parameters)) return this.#lastChange
    const nodes = new Set(parameters.flatMap((parameter) => this.usersOf[parameter]!))
    return this.#lastChange = { parameters: [...parameters], nodes: Array.from(nodes) }
  }
  toString(): string {
    return `graph of ${counted(this.nodes.length, "node")} on device ${this.deviceIndex}`
  }
}

/** Parameters with other values, and the nodes that use them. */
export interface GraphChange {
  readonly parameters: ReadonlyArray<number>
  readonly nodes: ReadonlyArray<number>
}

const areSame = (a: ReadonlyArray<number>, b: ReadonlyArray<number>): boolean => {
  if (a.length !== b.length) return false
  for (let index = 0; index < a.length; index++) if (a[index] !== b[index]) return false
  return true
}

/** Where memory is in an instance. */
export interface Located {
  readonly memory: AnyMemoryResource
  readonly offset: number
}

/** The memory and the values of one instance of a graph. */
export class Bindings {
  /** By slot; undefined for a parameter that was never given. */
  readonly #located: Array<Located | undefined>
  /** By parameter; undefined for memory, and for a scalar that was never given. */
  readonly scalars: Array<unknown>
  constructor(graph: GraphResource) {
    this.#located = Array.from({ length: graph.slots }, () => undefined)
    this.scalars = graph.parameters.map(() => undefined)
  }

  set(slot: number, located: Located | undefined): void {
    this.#located[slot] = located
  }

  get(slot: number): Located | undefined {
    return this.#located[slot]
  }

  /** Memory that a node uses, as it is bound. Memory of a parameter that was never given stays a placeholder. */
  locate(memory: AnyMemoryResource, offset: number): Located {
    if (memory.slot === undefined) return { memory, offset }
    const bound = this.#located[memory.slot.index]
    return bound === undefined ? { memory, offset } : { memory: bound.memory, offset: bound.offset + offset }
  }

  /** Writes the arguments that bindings decide into those of a launch, which begin at `start`. Allocates nothing for memory. */
  writeBound(
    pointers: ReadonlyArray<RecordedPointer>,
    scalars: ReadonlyArray<RecordedScalar>,
    view: DataView,
    start: number
  ): void {
    for (const { at, memory, offset } of pointers) {
      if (memory?.slot === undefined) continue
      const bound = this.#located[memory.slot.index]
      const address = bound === undefined ? memory.address : bound.memory.address + bound.offset
      setAddress(view, start + at, address + offset)
    }
    for (const { at, index, scalar } of scalars) {
      const value = this.scalars[index]
      if (value !== undefined) scalarWriters[scalar](view, start + at)(value)
    }
  }
}

/** One executable copy of a graph. Backends add their state. */
export class GraphInstance {
  bindings: Bindings
  /** The scratch memory, which is freed after the launches that use it. */
  scratch: DeviceMemoryResource | undefined
  /** The stream of the last launch, for which the uses of memory are noted. */
  notedOn: StreamResource | undefined
  /** True if nodes may hold other values than the bindings. */
  isStale = false
  /** The stream of the last launch. */
  launchedOn: StreamResource | undefined
  /** A stream with launches of the instance that this one replaces, so that its next launch waits for them. */
  follows: StreamResource | undefined
  /** True if its launches record events where regions begin and end. */
  readonly measures: boolean
  /** The events of its next launch; see `GraphResource.marks`. */
  events: ReadonlyArray<EventResource> | undefined
  constructor(bindings: Bindings, measures: boolean) {
    this.bindings = bindings
    this.measures = measures
  }
}

/** Why the driver refused a graph. */
export interface GraphRefusal {
  readonly why: string
  readonly node: number | undefined
}

export interface GraphBackend {
  /** The driver function that conditions need, if it is missing. */
  readonly missingForConditions: string | undefined
  /** The image of a kernel that passes a value to a condition; undefined if none is needed. */
  readonly setterImage: Uint8Array | undefined
  /** The instance made by `instantiate`. */
  readonly made: GraphInstance | undefined
  /** Why the last `instantiate` or `update` was refused, if the driver says so. Cleared by whoever reports it. */
  refusal: GraphRefusal | undefined
  /** Makes an instance. One that measures regions records events where they begin and end. */
  readonly instantiate: (graph: GraphResource, bindings: Bindings, measures?: boolean) => number
  readonly destroy: (instance: GraphInstance) => number
  /** Applies the bindings of some parameters. A failure that is no fault means that the instance must be made anew. */
  readonly bind: (instance: GraphInstance, graph: GraphResource, change: GraphChange) => number
  /** Changes the instance to another graph with the same structure, and to other bindings. */
  readonly update: (instance: GraphInstance, graph: GraphResource, bindings: Bindings) => number
  readonly setEnabled: (instance: GraphInstance, node: GraphNode, enabled: boolean) => number
  /** Gives an instance that measures regions the events of its next launch, or takes them away. */
  readonly setEvents: (instance: GraphInstance, events: ReadonlyArray<EventResource> | undefined) => number
  readonly upload: (instance: GraphInstance, stream: StreamResource) => number
  /** Launches the instance, and notes the records of the graph's events and of its own. */
  readonly launch: (instance: GraphInstance, graph: GraphResource, stream: StreamResource) => number
}

/** An executable graph: its instances, launched in turn. */
export class GraphExecResource implements GraphExecRef {
  state: ResourceState = "live"
  readonly owner: Owner
  graph: GraphResource
  readonly all: Array<GraphInstance>
  /** By instance, one that measures regions and shares its memory, once a launch needed it. */
  readonly measuring: Array<GraphInstance> = []
  /** The nodes that are disabled. */
  readonly disabled = new Set<number>()
  /** The handle whose release ended it. */
  endedBy: HandleResource | undefined
  #next = 0
  constructor(owner: Owner, graph: GraphResource, instances: Array<GraphInstance>) {
    this.owner = owner
    this.graph = graph
    this.all = instances
  }
  get deviceIndex(): number {
    return this.graph.deviceIndex
  }
  get instances(): number {
    return this.all.length
  }
  /** All instances, with those that measure regions. */
  get every(): ReadonlyArray<GraphInstance> {
    return [...this.all, ...this.measuring.filter((instance) => instance !== undefined)]
  }
  /** The index of the next instance in turn. */
  take(): number {
    const index = this.#next
    this.#next = index + 1 === this.all.length ? 0 : index + 1
    return index
  }
  toString(): string {
    return `executable ${this.graph}`
  }
}
