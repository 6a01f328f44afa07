/**
 * A recording in progress: the work of its streams becomes the nodes of a graph, and what orders the streams becomes
 * edges. No driver call is made.
 *
 * Each stream has a line of nodes, and a vector clock of the nodes of other lines that it is ordered after, so that no
 * redundant edge is recorded.
 */
import * as Fiber from "effect/Fiber"
import * as References from "effect/References"
import type { CUstream } from "../../cuda/handles.ts"
import { notReady, statuses, success } from "../../cuda/status.ts"
import { CurrentNodeName } from "../CudaRuntime.ts"
import type {
  GraphMemoryParameter,
  GraphPlaceholder,
  GraphRegionRef,
  MemoryRange,
  RecordingRef,
  RecordOptions
} from "../CudaRuntime.ts"
import type { Marker, MarkerBackend } from "./accesses.ts"
import type { PointerSlot } from "./arguments.ts"
import type { CapturedCall, CapturedGraph } from "./captures.ts"
import type { CopyBackend, RowsTransfer, Transfer } from "./copies.ts"
import {
  devicePlaceholder,
  GraphNode,
  GraphScalar,
  hostPlaceholder,
  isMemoryParameter,
  withIndices
} from "./graphNodes.ts"
import type { ConditionalWork, NodeRange, NodeWork, RecordedScalar, Slot } from "./graphNodes.ts"
import type { LaunchShape } from "./launchShape.ts"
import { withOptions } from "./memory.ts"
import type { KernelResource } from "./moduleResources.ts"
import { Ordering } from "./ordering.ts"
import { ownMemory, ownPartition, StreamResource } from "./resources.ts"
import type {
  AnyMemoryResource,
  DeviceMemoryResource,
  EventResource,
  HandleResource,
  Owner,
  PartitionResource
} from "./resources.ts"
import type { Cancel } from "./waits.ts"

/** By line, the last of its nodes that something is ordered after. */
type Known = ReadonlyMap<Line, number>

const nothing: Known = new Map()

/** A node on its line. Nodes at the same position are not ordered among each other. */
interface Place {
  readonly node: GraphNode
  readonly line: Line
  readonly position: number
  readonly known: Known
  /** For a mark, what it depends on. */
  readonly before: ReadonlyArray<Place> | undefined
}

/** The end of a line at some time. */
export interface RecordedPoint {
  readonly recording: Recording
  readonly line: Line
  readonly position: number
  readonly known: Known
  readonly tail: ReadonlyArray<Place>
}

/** The nodes recorded on one stream. */
export class Line {
  readonly stream: StreamResource
  position = 0
  /** The position of the last node that is no mark. */
  worked = 0
  /** Never mutated, because nodes keep a snapshot of it. */
  known: Known = nothing
  /** True while native code enqueues work that will be its next node. */
  isCapturing = false
  /** What the next node depends on. */
  tail: ReadonlyArray<Place> = []

  constructor(stream: StreamResource) {
    this.stream = stream
  }

  isAfter({ line, position }: Pick<Place, "line" | "position">): boolean {
    return line === this || (this.known.get(line) ?? 0) >= position
  }

  /** Orders later nodes after a point. */
  waitFor(point: RecordedPoint): void {
    const fresh = point.tail.filter((place) => !this.isAfter(place))
    if (fresh.length === 0) return
    const known = new Map(this.known)
    for (const [line, position] of point.known) known.set(line, Math.max(position, known.get(line) ?? 0))
    known.set(point.line, Math.max(point.position, known.get(point.line) ?? 0))
    known.delete(this)
    this.known = known
    this.tail = [...this.tail.filter((old) => !fresh.some((place) => implies(place, old))), ...fresh]
  }
}

/** True if a node comes after another. */
const implies = (place: Place, other: Place): boolean =>
  place.line === other.line
    ? place.position > other.position
    : (place.known.get(other.line) ?? 0) >= other.position

class RecordedMarker implements Marker {
  readonly deviceIndex: number
  readonly point: RecordedPoint
  constructor(point: RecordedPoint) {
    this.deviceIndex = point.line.stream.deviceIndex
    this.point = point
  }
}

/** Points in recording streams, which order the uses of buffers. */
class RecordedMarkers implements MarkerBackend {
  made: RecordedMarker | undefined
  record(stream: StreamResource): number {
    this.made = new RecordedMarker(pointOf(stream))
    return success
  }
  wait(stream: StreamResource, marker: Marker): number {
    lineOf(stream).waitFor((marker as RecordedMarker).point)
    return success
  }
  query(): number {
    return notReady
  }
  release(): void {}
  /** Nothing waits for a marker: waiting inside a recording is refused. */
  watch(): Cancel {
    return () => {}
  }
}

/** What is to become a node. */
interface NodeFields {
  readonly work: NodeWork
  readonly operation: string
  /** Default: the operation. */
  readonly name?: string
  readonly reads: ReadonlyArray<NodeRange>
  readonly writes: ReadonlyArray<NodeRange>
}

/** A node of another graph. Its dependencies are nodes added with it, by index. */
export interface EmbeddedNode extends NodeFields {
  readonly dependencies: ReadonlyArray<number>
  readonly inside: GraphNode["inside"]
  readonly stack: GraphNode["stack"]
}

/** Copies of the arguments of launches, many in one piece of memory, because each piece takes longer to make than a launch to record. */
class Copies {
  #piece = 512
  #free = noBytes
  copy({ buffer, byteOffset }: DataView<ArrayBufferLike>, byteLength: number): Uint8Array<ArrayBuffer> {
    if (byteLength === 0) return noBytes
    if (this.#free.byteLength < byteLength) {
      this.#piece = Math.min(2 * this.#piece, mostBytes)
      this.#free = new Uint8Array(Math.max(this.#piece, byteLength))
    }
    const bytes = this.#free.subarray(0, byteLength)
    this.#free = this.#free.subarray(byteLength)
    bytes.set(new Uint8Array(buffer, byteOffset, byteLength))
    return bytes
  }
}

/** The largest piece, unless a launch has more. */
const mostBytes = 65_536

const noBytes = new Uint8Array(0)

/** Ids of recording streams are negative, so that they differ from the driver's. */
let lastId = 0

export class Recording implements RecordingRef {
  state: "recording" | "ended" = "recording"
  readonly owner: Owner
  readonly options: RecordOptions
  readonly stream: StreamResource
  readonly placeholders: ReadonlyArray<GraphPlaceholder>
  /** The recording that this is a body of. */
  readonly parent: Recording | undefined
  /** The nodes of the whole graph, bodies included. */
  readonly nodes: Array<GraphNode>
  /** The indices of its own nodes. */
  readonly own: Array<number> = []
  /** The bodies of conditions inside. */
  readonly #bodies: Array<Recording> = []
  /** True for a body that a condition has. Otherwise its nodes are not part of the graph. */
  #isUsed = false
  readonly lines: Array<Line> = []
  readonly events: Array<EventResource> = []
  /** The buffers allocated in the program. */
  readonly scratch: Array<DeviceMemoryResource> = []
  /** By parameter, the slot of its memory. */
  readonly slotOf: ReadonlyArray<number | undefined>
  readonly #bytes = new Copies()
  readonly #orderings = new Map<AnyMemoryResource | HandleResource, Ordering>()
  readonly #scalars: number
  /** The placeholders for memory, by slot. */
  readonly #memories: Array<AnyMemoryResource> = []

  constructor(owner: Owner, options: RecordOptions, parent?: Recording) {
    this.owner = owner
    this.options = options
    this.parent = parent
    if (parent !== undefined) parent.#bodies.push(this)
    this.nodes = parent?.nodes ?? []
    const partition = parent === undefined
      ? options.partition && ownPartition(options.partition)
      : parent.stream.partition
    this.stream = this.makeStream(parent?.stream.priority ?? 0, true, partition)
    const slotOf: Array<number | undefined> = []
    this.placeholders = parent !== undefined ? [] : options.parameters.map(([name, kind], index) => {
      const isMemory = isMemoryParameter(kind)
      slotOf.push(isMemory ? this.#memories.length : undefined)
      return isMemory ? this.#placeholder(name, kind) : new GraphScalar(this, index, kind.kind, name)
    })
    this.slotOf = slotOf
    this.#scalars = parent === undefined ? this.slotOf.filter((slot) => slot === undefined).length : parent.#scalars
  }

  get deviceIndex(): number {
    return this.options.deviceIndex
  }

  /** The number of placeholders for memory. */
  get slots(): number {
    return this.#memories.length
  }

  #placeholder(parameter: string, { byteLength, ordered, parameter: kind }: GraphMemoryParameter): AnyMemoryResource {
    const slot = { recording: this, index: this.#memories.length, name: `parameter ${JSON.stringify(parameter)}` }
    const memory = kind === "device"
      ? devicePlaceholder(slot, byteLength, this.deviceIndex)
      : hostPlaceholder(slot, byteLength)
    this.#memories.push(memory)
    return withOptions(memory, { ordered })
  }

  makeStream(priority: number, nonBlocking: boolean, partition?: PartitionResource): StreamResource {
    const stream = new StreamResource(this.owner, {
      handle: 0 as CUstream,
      id: --lastId,
      deviceIndex: this.options.deviceIndex,
      priority,
      nonBlocking,
      origin: "owned"
    }, partition)
    stream.recording = this
    stream.line = new Line(stream)
    this.lines.push(stream.line)
    return stream
  }

  /** The recording of the whole graph. */
  get root(): Recording {
    return this.parent?.root ?? this
  }

  /** Makes a placeholder for memory of the graph. */
  allocate(byteLength: number): DeviceMemoryResource {
    if (this.parent !== undefined) return this.root.allocate(byteLength)
    const name = `scratch buffer ${this.scratch.length} of a graph`
    const memory = devicePlaceholder(
      { recording: this, index: this.#memories.length, name },
      byteLength,
      this.deviceIndex
    )
    this.#memories.push(memory)
    this.scratch.push(memory)
    return memory
  }

  /** Ends the recording: its streams and placeholders can no longer be used. */
  end(): void {
    this.state = "ended"
    for (const { stream } of this.lines) stream.state = "released"
    for (const memory of this.#memories) memory.state = "released"
  }

  /** The nodes of the graph, without those of bodies that no condition has because recording them failed. */
  get finished(): ReadonlyArray<GraphNode> {
    const dropped = new Set(this.#unused())
    if (dropped.size === 0) return this.nodes
    // A condition comes after the nodes of its bodies.
    for (const { index, inside } of this.nodes.toReversed()) {
      if (inside !== undefined && dropped.has(inside.nodeIndex)) dropped.add(index)
    }
    const kept = this.nodes.filter(({ index }) => !dropped.has(index))
    const positions = new Map(kept.map(({ index }, position) => [index, position]))
    return kept.map((node) => node.renumbered((index) => positions.get(index)!))
  }

  #unused(): ReadonlyArray<number> {
    return this.#bodies.flatMap((body) => body.#isUsed ? body.#unused() : body.own)
  }

  /** A status: refuses placeholders of another recording. */
  accept(slot: Slot | undefined): number {
    return slot === undefined || slot.recording === this.root ? success : statuses.InvalidValue.code
  }

  /** The uses of an ordered buffer or handle within the recording. */
  orderingOf(used: AnyMemoryResource | HandleResource): Ordering | undefined {
    if (used.ordering === undefined) return undefined
    const known = this.#orderings.get(used)
    if (known !== undefined) return known
    const made = new Ordering()
    this.#orderings.set(used, made)
    return made
  }

  /** Makes streams wait for a point. */
  waitFor(streams: ReadonlyArray<StreamResource>, point: RecordedPoint): void {
    for (const stream of streams) lineOf(stream).waitFor(point)
  }

  /** Records an event: a point, and a node if it measures time or other code waits for it. */
  record(event: EventResource, stream: StreamResource): void {
    if (event.isNode) {
      this.#add(stream, [{ work: { kind: "record", event }, operation: "CudaEvent.record", reads: [], writes: [] }])
      this.noteEvent(event)
    }
    event.inside = pointOf(stream)
  }

  noteEvent(event: EventResource): void {
    if (!this.events.includes(event)) this.events.push(event)
  }

  /** The unjoined streams: the recording does not end after their work. */
  get unjoined(): ReadonlyArray<StreamResource> {
    const origin = lineOf(this.stream)
    const isOpen = (line: Line) => line.isCapturing || !origin.isAfter({ line, position: line.worked })
    return this.lines.filter(isOpen).map(({ stream }) => stream)
  }

  /** Adds nodes that are not ordered among each other, after the work of a stream so far. */
  #add(stream: StreamResource, added: ReadonlyArray<NodeFields>): void {
    const line = lineOf(stream)
    const fiber = Fiber.getCurrent()
    const name = fiber?.getRef(CurrentNodeName)
    const frame = fiber?.getRef(References.CurrentStackFrame)
    const { known, tail } = line
    const dependencies = tail.map(({ node }) => node.index)
    const position = ++line.position
    if (added.some(({ work }) => work.kind !== "mark")) line.worked = position
    line.tail = added.map((fields): Place => {
      const index = this.nodes.length
      const given = fields.work.kind === "mark" ? undefined : name
      const node = new GraphNode(index, fields, given ?? fields.name ?? fields.operation, dependencies, frame)
      this.#push(node)
      return { node, line, position, known, before: node.kind === "mark" ? tail : undefined }
    })
  }

  #push(node: GraphNode): void {
    this.nodes.push(node)
    this.own.push(node.index)
  }

  /** Records a condition whose bodies have been recorded. */
  condition(
    stream: StreamResource,
    fields: Omit<ConditionalWork, "kind" | "bodies">,
    bodies: ReadonlyArray<Recording>
  ): void {
    const index = this.nodes.length
    const work: ConditionalWork = { kind: "conditional", ...fields, bodies: bodies.map((body) => body.own) }
    const operation = `CudaGraph.${work.condition === "while" ? "whileLoop" : work.condition}`
    this.#add(stream, [{ work, operation, reads: [work.value], writes: [] }])
    for (const [number, body] of bodies.entries()) {
      body.#isUsed = true
      for (const node of body.own) this.nodes[node]!.inside = { nodeIndex: index, body: number }
    }
  }

  readonly copies: CopyBackend = {
    enqueuedPart: false,
    copy: (transfer, stream) => {
      this.#add(stream, [copyFields(transfer, "CudaMemory.copy")])
      return success
    },
    copyRows: (transfer, stream) => {
      this.#add(stream, [{
        work: { kind: "copy2D", transfer },
        operation: "CudaMemory.copy2D",
        reads: [rowsRange(transfer.from, transfer.fromOffset, transfer.fromPitch, transfer)],
        writes: [rowsRange(transfer.to, transfer.toOffset, transfer.toPitch, transfer)]
      }])
      return success
    },
    copyBatch: (transfers, stream) => {
      this.#add(stream, transfers.map((transfer) => copyFields(transfer, "CudaMemory.copyBatch")))
      return success
    },
    fill: (memory, offset, value, bits, count, stream) => {
      this.#add(stream, [{
        work: { kind: "fill", memory, offset, value, bits, count },
        operation: bits === 8 ? "CudaMemory.fill" : `CudaMemory.fill${bits}`,
        reads: [],
        writes: [{ memory, offset, byteLength: count * (bits / 8) }]
      }])
      return success
    }
  }

  /** Records a launch with the arguments packed last. */
  launch(
    kernel: KernelResource,
    shape: LaunchShape,
    scalars: ReadonlyArray<RecordedScalar>,
    stream: StreamResource
  ): number {
    const { pointers, tableOffset, view } = kernel.arguments
    const work: NodeWork = {
      kind: "kernel",
      kernel,
      shape: shape.snapshot(),
      priority: stream.priority,
      partition: stream.partition,
      bytes: this.#bytes.copy(view, tableOffset),
      pointers: pointers.map(({ at, byteLength, memory, offset }) => ({ at, byteLength, memory, offset })),
      scalars,
      startsEarly: shape.programmatic && isAfterKernel(lineOf(stream))
    }
    this.#add(stream, [{
      work,
      operation: "CudaKernel.launch",
      name: kernel.name,
      reads: rangesOf(pointers, "reads"),
      writes: rangesOf(pointers, "writes")
    }])
    return success
  }

  /** Records where a region begins or ends. */
  mark(stream: StreamResource, region: GraphRegionRef, end: "begin" | "end"): void {
    const name = `${region.name} ${end}s`
    const work: NodeWork = { kind: "mark", region, end }
    this.#add(stream, [{ work, operation: "CudaTiming.region", name, reads: [], writes: [] }])
  }

  /** Records work of other native code. */
  capture(
    stream: StreamResource,
    captured: CapturedGraph,
    { handles = [], reads, simulate, writes }: CapturedCall,
    operation: string
  ): void {
    const ranges = (given: ReadonlyArray<MemoryRange>) =>
      given.map((range) => ({ ...range, memory: ownMemory(range.memory) }))
    const { partition } = stream
    const keepers = handles.map(({ keeper }) => keeper?.deref())
    const work: NodeWork = { kind: "graph", captured, priority: stream.priority, partition, simulate, handles, keepers }
    this.#add(stream, [{ work, operation, reads: ranges(reads), writes: ranges(writes) }])
  }

  /** Records the nodes of another graph after the work of a stream so far. */
  embed(stream: StreamResource, added: ReadonlyArray<EmbeddedNode>): void {
    const line = lineOf(stream)
    const before = line.tail.map(({ node }) => node.index)
    const first = this.nodes.length
    const isUsed = new Set(added.flatMap(({ dependencies }) => dependencies))
    line.worked = ++line.position
    const ends: Array<Place> = []
    for (const [index, fields] of added.entries()) {
      const { inside } = fields
      const own = fields.dependencies.map((dependency) => first + dependency)
      const isRoot = own.length === 0 && inside === undefined
      const name = fields.name ?? fields.operation
      const moved = { ...fields, work: withIndices(fields.work, (node) => first + node) }
      const node = new GraphNode(first + index, moved, name, isRoot ? before : own, fields.stack)
      if (inside === undefined) this.#push(node)
      else {
        node.inside = { ...inside, nodeIndex: first + inside.nodeIndex }
        this.nodes.push(node)
      }
      const place = { node, line, position: line.position, known: line.known, before: undefined }
      if (inside === undefined && !isUsed.has(index)) ends.push(place)
    }
    if (ends.length > 0) line.tail = ends
  }

  /** Whether arguments of launches can be scalar parameters. */
  get hasScalars(): boolean {
    return this.#scalars > 0
  }

  readonly markers = new RecordedMarkers()
}

/** Only recording streams reach a recording. */
const lineOf = (stream: StreamResource): Line => stream.line!

/** The end of a stream's work so far. */
export const pointOf = (stream: StreamResource): RecordedPoint => {
  const line = lineOf(stream)
  const { known, position, tail } = line
  return { recording: stream.recording!, line, position, known, tail }
}

/** True if the next work of a stream only depends on a kernel of the same stream. */
const isAfterKernel = (line: Line): boolean => {
  let { tail } = line
  while (tail.length === 1 && tail[0]!.line === line && tail[0]!.before !== undefined) tail = tail[0]!.before
  const [last] = tail
  return tail.length === 1 && last!.line === line && last!.node.kind === "kernel"
}

const copyFields = (transfer: Transfer, operation: string): NodeFields => ({
  work: { kind: "copy", transfer },
  operation,
  reads: [{ memory: transfer.from, offset: transfer.fromOffset, byteLength: transfer.byteLength }],
  writes: [{ memory: transfer.to, offset: transfer.toOffset, byteLength: transfer.byteLength }]
})

const rowsRange = (memory: AnyMemoryResource, offset: number, pitch: number, size: RowsTransfer): NodeRange => ({
  memory,
  offset,
  byteLength: (size.height - 1) * pitch + size.width
})

const rangesOf = (pointers: ReadonlyArray<PointerSlot>, access: "reads" | "writes"): ReadonlyArray<NodeRange> => {
  const ranges: Array<NodeRange> = []
  for (const slot of pointers) {
    const { byteLength, memory, offset } = slot
    if (memory !== undefined && slot[access]) ranges.push({ memory, offset, byteLength })
  }
  return ranges
}
