/**
 * Graphs on simulated devices: the nodes of a launch as work of the model, on branches of the launch's stream.
 */
import { statuses, success } from "../../cuda/status.ts"
import type { GraphCondition } from "../CudaRuntime.ts"
import type { RowsTransfer, Transfer } from "../shared/copies.ts"
import { GraphInstance, hasPriority } from "../shared/graphNodes.ts"
import type {
  Bindings,
  ConditionalWork,
  FillWork,
  GraphBackend,
  GraphNode,
  GraphRefusal,
  GraphResource,
  KernelWork,
  NodeWork
} from "../shared/graphNodes.ts"
import { LaunchShape } from "../shared/launchShape.ts"
import type { EventResource, StreamResource } from "../shared/resources.ts"
import type { SimulatedCaptures } from "./captures.ts"
import { touchBoth } from "./copies.ts"
import type { SimulatedCopies } from "./copies.ts"
import type { SimulatedDriver } from "./Driver.ts"
import type { SimulatedKernels } from "./kernels.ts"
import { enqueueBranches, enqueueCondition, hold, planBranches } from "./model/branches.ts"
import type { BranchPlan, Enqueue } from "./model/branches.ts"
import type { EventRecord } from "./model/parts.ts"
import type { Schedule } from "./model/schedule.ts"
import type { Storage } from "./model/Storage.ts"
import { engineOf } from "./partitions.ts"
import { memoryPart, simulatedEvent, streamPart } from "./resources.ts"

class SimulatedInstance extends GraphInstance {
  graph: GraphResource
  /** The branches of the nodes outside bodies. */
  readonly plan: BranchPlan
  /** By conditional node, the branches of each body. */
  readonly bodies: ReadonlyArray<ReadonlyArray<BranchPlan> | undefined>
  /** True if kernels have the priorities of their nodes, instead of that of the stream. Stays as it is in an update. */
  readonly usesNodePriority: boolean
  /** The nodes that are disabled. */
  readonly disabled = new Set<number>()
  /** The end of the last launch. */
  end: EventRecord | undefined
  constructor(graph: GraphResource, bindings: Bindings, measures: boolean) {
    super(bindings, measures)
    this.graph = graph
    const planOf = (nodes: ReadonlyArray<GraphNode>) => planBranches(dependenciesIn(nodes))
    this.plan = planOf(outermost(graph))
    this.bodies = graph.nodes.map(({ work }) =>
      work.kind === "conditional"
        ? work.bodies.map((body) => planOf(body.map((index) => graph.nodes[index]!)))
        : undefined
    )
    this.usesNodePriority = graph.nodes.some(hasPriority)
  }
}

/** The nodes that are in no body. */
const outermost = ({ nodes }: GraphResource): ReadonlyArray<GraphNode> =>
  nodes.filter(({ inside }) => inside === undefined)

/** The dependencies among some nodes, by their position in the list. */
const dependenciesIn = (nodes: ReadonlyArray<GraphNode>): ReadonlyArray<ReadonlyArray<number>> => {
  const positions = new Map(nodes.map(({ index }, position) => [index, position]))
  return nodes.map(({ dependencies }) => dependencies.map((index) => positions.get(index)!))
}

export class SimulatedGraphs implements GraphBackend {
  readonly missingForConditions = undefined
  readonly setterImage = undefined
  made: GraphInstance | undefined
  refusal: GraphRefusal | undefined
  readonly #driver: SimulatedDriver
  readonly #copies: SimulatedCopies
  readonly #kernels: SimulatedKernels
  readonly #captures: SimulatedCaptures
  /** The arguments of the launch that is being prepared. */
  #arguments = new Uint8Array(64)

  constructor(
    driver: SimulatedDriver,
    copies: SimulatedCopies,
    kernels: SimulatedKernels,
    captures: SimulatedCaptures
  ) {
    this.#driver = driver
    this.#copies = copies
    this.#kernels = kernels
    this.#captures = captures
  }

  instantiate(graph: GraphResource, bindings: Bindings, measures = false): number {
    this.refusal = undefined
    const status = this.#begin("cuGraphInstantiateWithParams", graph) || this.#refuse(graph)
    if (status === success) this.made = new SimulatedInstance(graph, bindings, measures)
    return status
  }

  /** Launches in progress go on. */
  destroy(instance: GraphInstance): number {
    return this.#begin("cuGraphExecDestroy", simulatedInstance(instance).graph)
  }

  /** Launches read the bindings themselves. */
  bind(instance: GraphInstance): number {
    return this.#begin("cuGraphExecKernelNodeSetParams", simulatedInstance(instance).graph)
  }

  update(instance: GraphInstance, graph: GraphResource): number {
    const simulated = simulatedInstance(instance)
    this.refusal = undefined
    const status = this.#begin("cuGraphExecUpdate", graph) || this.#refuse(graph)
    if (status !== success) return status
    this.refusal = differenceOf(simulated.graph, graph)
    if (this.refusal !== undefined) return statuses.GraphExecUpdateFailure.code
    simulated.graph = graph
    return success
  }

  setEnabled(instance: GraphInstance, node: GraphNode, enabled: boolean): number {
    const { disabled, graph } = simulatedInstance(instance)
    const status = this.#begin("cuGraphNodeSetEnabled", graph)
    if (status !== success) return status
    if (node.kind === "record") return statuses.InvalidValue.code
    if (enabled) disabled.delete(node.index)
    else disabled.add(node.index)
    return success
  }

  /** Launches read the events themselves. */
  setEvents(instance: GraphInstance, events: ReadonlyArray<EventResource> | undefined): number {
    instance.events = events
    return this.#begin("cuGraphExecEventRecordNodeSetEvent", simulatedInstance(instance).graph)
  }

  upload(_: GraphInstance, stream: StreamResource): number {
    return this.#driver.begin("cuGraphUpload", streamPart(stream).device)
  }

  /** Prepares all nodes before it enqueues any, so that a launch that fails enqueues nothing. */
  launch(instance: GraphInstance, _: GraphResource, stream: StreamResource): number {
    const simulated = simulatedInstance(instance)
    const part = streamPart(stream)
    const status = this.#driver.begin("cuGraphLaunch", part.device)
    if (status !== success) return status
    const works = this.#prepareAll(outermost(simulated.graph), simulated, stream.deviceIndex)
    if (typeof works === "number") return works
    const { model } = this.#driver
    hold(model, part, simulated.end)
    const { schedule } = model.world
    const named = schedule === undefined ? works : namedWorks(schedule, outermost(simulated.graph), works)
    simulated.end = enqueueBranches(model, part, simulated.plan, named)
    return success
  }

  #begin(call: string, { deviceIndex }: GraphResource): number {
    return this.#driver.begin(call, this.#driver.device(deviceIndex))
  }

  /** The status of the first node that can never run; 0 if there is none. */
  #refuse({ deviceIndex, nodes }: GraphResource): number {
    for (const { work } of nodes) {
      const status = work.kind === "kernel"
        ? this.#kernels.refuse(
          work.kernel.code,
          Object.assign(new LaunchShape(), work.shape),
          deviceIndex,
          work.partition
        )
        : work.kind === "copy2D"
        ? this.#copies.refuseRows(work.transfer, deviceIndex)
        : success
      if (status !== success) return status
    }
    return success
  }

  /** Makes the work of nodes ready to be enqueued. Returns the status if that fails. */
  #prepareAll(
    nodes: ReadonlyArray<GraphNode>,
    instance: SimulatedInstance,
    deviceIndex: number
  ): ReadonlyArray<Enqueue> | number {
    const works: Array<Enqueue> = []
    for (const node of nodes) {
      const prepared = instance.disabled.has(node.index) ? nothing : this.#prepare(node, instance, deviceIndex)
      if (typeof prepared === "number") return prepared
      works.push(prepared)
    }
    return works
  }

  #prepareCondition(
    index: number,
    { bodies, condition, value }: ConditionalWork,
    instance: SimulatedInstance,
    deviceIndex: number
  ): Enqueue | number {
    const { graph } = instance
    const { model } = this.#driver
    const ready: Array<Enqueue> = []
    for (const [number, body] of bodies.entries()) {
      const works = this.#prepareAll(body.map((node) => graph.nodes[node]!), instance, deviceIndex)
      if (typeof works === "number") return works
      const plan = instance.bodies[index]![number]!
      ready.push((stream) => void enqueueBranches(model, stream, plan, works))
    }
    const { memory, offset } = instance.bindings.locate(value.memory, value.offset)
    const storage = memoryPart(memory)
    const status = touchBoth(storage, storage)
    if (status !== success) return status
    const read = () => new DataView(storage.touch().buffer).getUint32(offset, true)
    const choose = () => ready[bodyFor(condition, read())]
    return (stream) => enqueueCondition(model, stream, choose, condition === "while")
  }

  /** Makes a node's work ready to be enqueued. Returns the status if that fails. */
  #prepare(
    { index, reads, work, writes }: GraphNode,
    instance: SimulatedInstance,
    deviceIndex: number
  ): Enqueue | number {
    const { bindings } = instance
    const { model } = this.#driver
    switch (work.kind) {
      case "conditional":
        return this.#prepareCondition(index, work, instance, deviceIndex)
      case "kernel":
        return this.#prepareKernel(work, instance, deviceIndex)
      case "fill":
        return this.#prepareFill(work, bindings)
      case "copy":
        return withMemory(
          work.transfer,
          bindings,
          ({ byteLength, fromOffset, toOffset }, to, from) => (stream) =>
            model.copy(stream, to, toOffset, from, fromOffset, byteLength)
        )
      case "copy2D":
        return withMemory(
          work.transfer,
          bindings,
          (rows, to, from) => (stream) => model.copyRows(stream, to, from, rows)
        )
      case "graph":
        return this.#captures.prepare({ reads, writes, simulate: work.simulate })
      case "record":
        return this.#prepareRecord(work.event)
      case "mark": {
        const at = instance.graph.marks.get(index)
        const event = at === undefined ? undefined : instance.events?.[at]
        return event === undefined ? nothing : this.#prepareRecord(event)
      }
    }
  }

  #prepareRecord(event: EventResource): Enqueue {
    const { part } = simulatedEvent(event)
    return (stream) => this.#driver.model.record(part, stream, event.hasTiming)
  }

  #prepareKernel(work: KernelWork, instance: SimulatedInstance, deviceIndex: number): Enqueue | number {
    const { bindings, usesNodePriority } = instance
    const { kernel, priority, shape } = work
    const view = this.#copyOf(work.bytes)
    bindings.writeBound(work.pointers, work.scalars, view, 0)
    const pointers = work.pointers.map((pointer) =>
      pointer.memory === undefined ? pointer : { ...pointer, ...bindings.locate(pointer.memory, pointer.offset) }
    )
    const packed = { offsets: kernel.arguments.offsets, pointers, view }
    const status = this.#kernels.prepare(kernel, shape, packed, deviceIndex)
    if (status !== success) return status
    const { latencies } = this.#driver.device(deviceIndex).traits
    const prepared = { ...this.#kernels.prepared, lead: latencies?.graphKernel ?? latencies?.kernel ?? 0 }
    const engine = engineOf(work.partition) ?? this.#driver.device(deviceIndex).compute
    const own = usesNodePriority ? { ...prepared, engine, priority } : { ...prepared, engine }
    return (stream) => this.#driver.model.work(stream, own)
  }

  /** A copy of arguments, which the next one overwrites: launches decode it at once. */
  #copyOf(bytes: Uint8Array): DataView {
    if (bytes.byteLength > this.#arguments.byteLength) this.#arguments = new Uint8Array(2 * bytes.byteLength)
    this.#arguments.set(bytes)
    return new DataView(this.#arguments.buffer)
  }

  #prepareFill({ bits, count, memory, offset, value }: FillWork, bindings: Bindings): Enqueue | number {
    const located = bindings.locate(memory, offset)
    const to = memoryPart(located.memory)
    const status = touchBoth(to, to)
    if (status !== success) return status
    return (stream) => this.#driver.model.fill(stream, to, located.offset, value, bits, count)
  }
}

const nothing: Enqueue = () => {}

/** Tells a schedule which node the work is of. */
const namedWorks = (
  schedule: Schedule,
  nodes: ReadonlyArray<GraphNode>,
  works: ReadonlyArray<Enqueue>
): ReadonlyArray<Enqueue> =>
  works.map((work, index) => (stream) => {
    schedule.node = nodes[index]!.index
    work(stream)
    schedule.node = undefined
  })

/** The index of the body that runs for a value; there may be no such body. */
const bodyFor = (condition: GraphCondition, value: number): number => {
  if (condition === "match") return value
  if (value !== 0) return 0
  return condition === "when" ? 1 : -1
}

/** Narrows an instance. All instances of a simulated runtime are simulated. */
const simulatedInstance = (instance: GraphInstance): SimulatedInstance => instance as SimulatedInstance

/** Makes a copy ready to be enqueued: finds its memory, and passes it on. Returns the status if that fails. */
const withMemory = <T extends Transfer | RowsTransfer>(
  transfer: T,
  bindings: Bindings,
  ready: (transfer: T, to: Storage, from: Storage) => Enqueue
): Enqueue | number => {
  const to = bindings.locate(transfer.to, transfer.toOffset)
  const from = bindings.locate(transfer.from, transfer.fromOffset)
  const [toPart, fromPart] = [memoryPart(to.memory), memoryPart(from.memory)]
  const status = touchBoth(toPart, fromPart)
  if (status !== success) return status
  return ready({ ...transfer, toOffset: to.offset, fromOffset: from.offset }, toPart, fromPart)
}

/** The first difference that an update cannot make; undefined if it can make all of them. */
const differenceOf = (before: GraphResource, after: GraphResource): GraphRefusal | undefined => {
  const isSame = before.nodes.length === after.nodes.length &&
    before.nodes.every((node, index) => areSame(node.dependencies, after.nodes[index]!.dependencies))
  if (!isSame) return { why: "its nodes or edges differ", node: undefined }
  for (const [index, { work }] of before.nodes.entries()) {
    const why = changeOf(work, after.nodes[index]!.work)
    if (why !== undefined) return { why, node: index }
  }
  return undefined
}

const areSame = (some: ReadonlyArray<number>, others: ReadonlyArray<number>): boolean =>
  some.length === others.length && some.every((value, index) => value === others[index])

const changeOf = (before: NodeWork, after: NodeWork): string | undefined => {
  if (before.kind !== after.kind) return `the node was a ${before.kind} and is a ${after.kind}`
  if (before.kind === "kernel" && after.kind === "kernel") {
    if (before.partition !== after.partition) return "a launch cannot move to another partition"
    return before.shape.cooperative === after.shape.cooperative
      ? undefined
      : "a launch cannot become cooperative, or stop being so"
  }
  if (!("transfer" in before && "transfer" in after)) return undefined
  return placesOf(before.transfer) === placesOf(after.transfer)
    ? undefined
    : "a copy cannot move to other kinds of memory"
}

/** Where the memory of a copy is. */
const placesOf = ({ from, to }: Pick<Transfer, "from" | "to">): string =>
  [from, to].map((memory) => memory.kind === "host" ? "host" : memory.deviceIndex).join(" ")
