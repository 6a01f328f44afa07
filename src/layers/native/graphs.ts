/**
 * Graphs on the driver: a graph and its executable copy per instance. The graph is kept, because later calls name its nodes.
 */
import { graphUsesNodePriority } from "../../cuda/flags.ts"
import { nullHandle } from "../../cuda/handles.ts"
import type { CUcontext, CUevent, CUgraph, CUgraphExec, CUgraphNode, HostPointer } from "../../cuda/handles.ts"
import { twoTo32 } from "../../cuda/parameters.ts"
import { statuses, success } from "../../cuda/status.ts"
import { GraphInstance } from "../shared/graphNodes.ts"
import type {
  Bindings,
  ConditionalWork,
  FillWork,
  GraphBackend,
  GraphChange,
  GraphNode,
  GraphRefusal,
  GraphResource,
  NodeWork
} from "../shared/graphNodes.ts"
import type { EventResource, StreamResource } from "../shared/resources.ts"
import { Out } from "./Device.ts"
import type { NativeStream } from "./Device.ts"
import type { Driver } from "./Driver.ts"
import type { NativeEvents } from "./events.ts"
import { KernelBlocks } from "./GraphBlocks.ts"
import type { Setter } from "./GraphBlocks.ts"
import { GraphBuild, GraphMemory, piecesOf, writeFill } from "./GraphBuild.ts"
import type { NativePeers } from "./peers.ts"
import { setterImage } from "./setter.ts"
import { nativeStream } from "./streams.ts"

class NativeInstance extends GraphInstance {
  readonly graph: CUgraph
  readonly exec: CUgraphExec
  readonly context: CUcontext
  /** By node, those of the driver's original graph, also after an update. */
  readonly nodes: ReadonlyArray<ReadonlyArray<CUgraphNode>>
  readonly deviceIndex: number
  /** Whether launches use the priorities of the nodes. An update cannot change that. */
  readonly usesPriorities: boolean
  /** By conditional node, the kernels that pass its value to the driver. */
  readonly setters: ReadonlyArray<ReadonlyArray<Setter>>
  /** By node, the first of its nodes of the driver, and the address of its launch if `kernels` has it, otherwise 0. */
  readonly places: Float64Array
  /** The launches that parameters change, once one was bound. */
  kernels: KernelBlocks | undefined
  /** What its marks record between launches. */
  readonly idle: CUevent | undefined
  /** By event of the marks, the node that records it. */
  readonly marks: Array<CUgraphNode> = []
  /** The events that its other nodes record. They are not destroyed before it. */
  held: ReadonlyArray<EventResource>
  constructor(
    graph: GraphResource,
    bindings: Bindings,
    build: GraphBuild,
    exec: CUgraphExec,
    idle: CUevent | undefined
  ) {
    super(bindings, idle !== undefined)
    const { context, handle, nodes, setters, usesPriorities } = build
    this.idle = idle
    if (idle !== undefined) { for (const [node, at] of graph.marks) this.marks[at] = nodes[node]![0]! }
    this.held = graph.events
    this.deviceIndex = graph.deviceIndex
    this.graph = handle
    this.exec = exec
    this.context = context
    this.nodes = nodes
    this.setters = setters
    this.usesPriorities = usesPriorities
    this.places = new Float64Array(2 * nodes.length)
    for (let index = 0; index < nodes.length; index++) this.places[2 * index] = nodes[index]![0] ?? 0
  }

  dropKernels(): void {
    this.kernels = undefined
    for (let at = 1; at < this.places.length; at += 2) this.places[at] = 0
  }
}

type CopyWork = Extract<NodeWork, { readonly kind: "copy" }>

/** Narrows an instance. All instances of the native runtime are native. */
const nativeInstance = (instance: GraphInstance): NativeInstance => instance as NativeInstance

/** What the shared operations answer with an instance made anew. */
const cannotUpdate = statuses.GraphExecUpdateFailure.code

/** Why a graph was not instantiated, by `CUgraphInstantiateResult`. */
const instantiateProblems: { readonly [result: number]: string } = {
  2: "its structure is invalid",
  3: "it contains an operation that graphs do not support",
  4: "its nodes belong to several contexts",
  5: "it has a conditional handle without a node"
}

/** Why a graph was not updated, by `CUgraphExecUpdateResult`. */
const updateProblems: { readonly [result: number]: string } = {
  2: "its nodes are connected in another way",
  3: "a node is of another kind",
  4: "a node has another kernel",
  5: "the parameters of a node changed in a way that an update cannot apply",
  6: "it contains a node that an update cannot change",
  7: "a node has another kernel, which an update cannot apply",
  8: "the attributes of a launch changed in a way that an update cannot apply"
}

/** Word offsets in a `CUDA_GRAPH_INSTANTIATE_PARAMS`. */
const instantiateAt = { flags: 0, errorNode: 4, result: 6, words: 8 } as const

/** Word offsets in a `CUgraphExecUpdateResultInfo`. */
const updateAt = { result: 0, errorNode: 2, errorFromNode: 4, words: 6 } as const

export class NativeGraphs implements GraphBackend {
  readonly setterImage = setterImage
  made: NativeInstance | undefined
  refusal: GraphRefusal | undefined
  readonly #driver: Driver
  readonly #events: NativeEvents
  readonly #peers: NativePeers
  readonly #memory: GraphMemory
  readonly #exec = new Out<CUgraphExec>()
  readonly #instantiate = new Uint32Array(instantiateAt.words)
  readonly #update = new Uint32Array(updateAt.words)

  constructor(driver: Driver, events: NativeEvents, peers: NativePeers) {
    this.#driver = driver
    this.#events = events
    this.#peers = peers
    this.#memory = new GraphMemory(driver.library)
  }

  /** Conditions exist since CUDA 12.3. */
  get missingForConditions(): string | undefined {
    const needed = ["cuGraphConditionalHandleCreate", "cuGraphAddNode_v2"] as const
    return needed.find((name) => this.#driver.calls[name] === undefined)
  }

  instantiate(graph: GraphResource, bindings: Bindings, measures = false): number {
    if (!measures) return this.#makeInstance(graph, bindings)
    const device = this.#driver.device(graph.deviceIndex)
    const idle = device.takeMarker()
    if (idle === undefined) return this.#driver.madeBy(device)
    const status = this.#makeInstance(graph, bindings, idle)
    if (status !== success) device.giveMarker(idle)
    return status
  }

  #makeInstance(graph: GraphResource, bindings: Bindings, idle?: CUevent): number {
    return this.#driver.inContextOf(graph.deviceIndex, "", () => {
      const build = this.#build(graph, bindings, idle)
      if (typeof build === "number") return build
      const status = this.#make(build)
      if (status !== success) return status
      this.made = new NativeInstance(graph, bindings, build, this.#exec.value, idle)
      this.#events.hold(graph.events)
      return success
    })
  }

  /** Makes the driver's graph, or returns a status. */
  #build(graph: GraphResource, bindings: Bindings, idle?: CUevent): GraphBuild | number {
    this.refusal = undefined
    for (const memory of graph.peers) {
      const allowed = this.#peers.hold(graph.deviceIndex, memory)
      if (allowed !== success) return allowed
    }
    const build = new GraphBuild(this.#driver, this.#memory, graph, bindings, idle)
    const status = build.run()
    if (status === success) return build
    if (status === statuses.InvalidValue.code && build.failed !== undefined) {
      this.refusal = { why: "the driver did not accept a node", node: build.failed }
    }
    return status
  }

  #make(build: GraphBuild): number {
    const { calls } = this.#driver
    const words = this.#instantiate.fill(0)
    words[instantiateAt.flags] = build.usesPriorities ? graphUsesNodePriority : 0
    const status = calls.cuGraphInstantiateWithParams(this.#exec.words, build.handle, words)
    if (status !== success) {
      const why = instantiateProblems[words[instantiateAt.result]!]
      this.#refuse(why, build.indexOf(nodeAt(words, instantiateAt.errorNode)))
      build.destroy()
      return this.#driver.answer("cuGraphInstantiate", status)
    }
    return success
  }

  #refuse(why: string | undefined, node: number | undefined): void {
    if (why !== undefined) this.refusal = { why, node }
    else if (node !== undefined) this.refusal = { why: "the driver did not accept a node", node }
  }

  destroy(resource: GraphInstance): number {
    const { deviceIndex, exec, graph, held, idle } = nativeInstance(resource)
    const { calls } = this.#driver
    const execStatus = calls.cuGraphExecDestroy(exec)
    const graphStatus = calls.cuGraphDestroy(graph)
    this.#events.letGo(held)
    if (idle !== undefined) this.#driver.device(deviceIndex).giveMarker(idle)
    return execStatus === success
      ? this.#driver.answer("cuGraphDestroy", graphStatus)
      : this.#driver.answer("cuGraphExecDestroy", execStatus)
  }

  bind(resource: GraphInstance, graph: GraphResource, { nodes, parameters }: GraphChange): number {
    const instance = nativeInstance(resource)
    const { calls, library } = this.#driver
    const { bindings, context, exec, places } = instance
    if (instance.kernels === undefined) instance.kernels = new KernelBlocks(library, graph, bindings, context, places)
    else instance.kernels.write(bindings, parameters)
    for (let at = 0; at < nodes.length; at++) {
      const index = nodes[at]!
      const node = places[2 * index] as CUgraphNode
      const address = places[2 * index + 1] as HostPointer
      const status = address === nullHandle()
        ? this.#bindNode(instance, graph.nodes[index]!)
        : this.#driver.answer(
          "cuGraphExecKernelNodeSetParams",
          calls.cuGraphExecKernelNodeSetParams_v2(exec, node, address)
        )
      if (status !== success) return status
    }
    return success
  }

  /** Applies the bindings to a node that is no launch. */
  #bindNode(instance: NativeInstance, { index, work }: GraphNode): number {
    switch (work.kind) {
      case "fill":
        return this.#bindFill(instance, index, work)
      case "copy":
        return this.#bindCopy(instance, index, work)
      case "copy2D":
        // The driver refuses new parameters of a 2D copy.
        return this.#driver.answer("cuGraphExecMemcpyNodeSetParams", cannotUpdate)
      case "conditional":
        return this.#bindConditional(instance, index, work)
      case "kernel":
      case "graph":
      case "record":
      case "mark":
        return success
    }
  }

  #bindConditional(instance: NativeInstance, index: number, { value }: ConditionalWork): number {
    const { context, exec } = instance
    const { setter: block } = this.#memory
    const { memory, offset } = instance.bindings.locate(value.memory, value.offset)
    for (const setter of instance.setters[index]!) {
      block.write(setter, context, memory.address + offset)
      const status = this.#driver.calls.cuGraphExecKernelNodeSetParams_v2(exec, setter.node, block.address)
      if (status !== success) return this.#driver.answer("cuGraphExecKernelNodeSetParams", status)
    }
    return success
  }

  #bindFill(instance: NativeInstance, index: number, work: FillWork): number {
    const { calls } = this.#driver
    const { fill } = this.#memory
    writeFill(fill, work, instance.bindings)
    return this.#driver.answer(
      "cuGraphExecMemsetNodeSetParams",
      calls.cuGraphExecMemsetNodeSetParams(instance.exec, instance.nodes[index]![0]!, fill.address, instance.context)
    )
  }

  #bindCopy(instance: NativeInstance, index: number, work: CopyWork): number {
    const { calls } = this.#driver
    const { copy } = this.#memory
    const nodes = instance.nodes[index]!
    const pieces = piecesOf(work, instance.bindings)
    const name = "cuGraphExecMemcpyNodeSetParams"
    if (pieces.length !== nodes.length) return this.#driver.answer(name, cannotUpdate)
    for (const [at, piece] of pieces.entries()) {
      copy.write(piece)
      const { context, exec } = instance
      const status = calls.cuGraphExecMemcpyNodeSetParams(exec, nodes[at]!, copy.address, context)
      if (status !== success) return this.#driver.answer(name, status)
    }
    return success
  }

  update(resource: GraphInstance, graph: GraphResource, bindings: Bindings): number {
    const instance = nativeInstance(resource)
    return this.#driver.inContextOf(graph.deviceIndex, "", () => {
      const build = this.#build(graph, bindings)
      if (typeof build === "number") return build
      const status = this.#apply(instance, build)
      build.destroy()
      if (status === success) this.#noteUpdate(instance, graph, bindings)
      return this.#driver.answer("cuGraphExecUpdate", status)
    })
  }

  #noteUpdate(instance: NativeInstance, { events }: GraphResource, bindings: Bindings): void {
    const { held } = instance
    instance.bindings = bindings
    instance.held = events
    this.#events.hold(events)
    this.#events.letGo(held)
  }

  /** Updates an instance. The driver pairs the nodes in the order of their creation. */
  #apply(instance: NativeInstance, build: GraphBuild): number {
    const differs = build.nodes.findIndex((nodes, index) => nodes.length !== instance.nodes[index]?.length)
    if (differs >= 0) {
      const isNew = instance.nodes[differs] === undefined
      this.#refuse(isNew ? "it has more nodes" : "a copy is split in another way", differs)
      return cannotUpdate
    }
    if (build.usesPriorities !== instance.usesPriorities) {
      this.#refuse("only one of the graphs has launches with priorities", undefined)
      return cannotUpdate
    }
    const words = this.#update.fill(0)
    const status = this.#driver.calls.cuGraphExecUpdate_v2(instance.exec, build.handle, words)
    if (status === success) {
      instance.dropKernels()
      return success
    }
    const node = build.indexOf(nodeAt(words, updateAt.errorNode)) ??
      build.indexOf(nodeAt(words, updateAt.errorFromNode))
    this.#refuse(updateProblems[words[updateAt.result]!], node)
    return status
  }

  setEnabled(resource: GraphInstance, { index }: GraphNode, enabled: boolean): number {
    const { exec, nodes } = nativeInstance(resource)
    let first = success
    for (const node of nodes[index]!) {
      const status = this.#driver.calls.cuGraphNodeSetEnabled(exec, node, enabled ? 1 : 0)
      if (first === success) first = status
    }
    return this.#driver.answer("cuGraphNodeSetEnabled", first)
  }

  /** The driver must not meet an event that was destroyed, so the events of a launch stay only until it is enqueued. */
  setEvents(resource: GraphInstance, events: ReadonlyArray<EventResource> | undefined): number {
    const instance = nativeInstance(resource)
    const { calls } = this.#driver
    let first = success
    for (const [at, node] of instance.marks.entries()) {
      const event = events?.[at]?.own ?? instance.idle!
      first ||= calls.cuGraphExecEventRecordNodeSetEvent(instance.exec, node, event)
    }
    instance.events = events
    return this.#driver.answer("cuGraphExecEventRecordNodeSetEvent", first)
  }

  upload(resource: GraphInstance, streamResource: StreamResource): number {
    const { calls } = this.#driver
    const { exec } = nativeInstance(resource)
    const stream = nativeStream(streamResource)
    if (!stream.needsContext) return this.#driver.answer("cuGraphUpload", calls.cuGraphUpload(exec, stream.handle))
    const call = () => calls.cuGraphUpload(exec, stream.handle)
    return this.#driver.inContextOf(stream.deviceIndex, "cuGraphUpload", call)
  }

  launch(resource: GraphInstance, { events, isPlain }: GraphResource, stream: StreamResource): number {
    const instance = nativeInstance(resource)
    if (instance.events !== undefined) return this.#launchRecording(instance, [...events, ...instance.events], stream)
    return isPlain ? this.#launch(instance, stream) : this.#launchRecording(instance, events, stream)
  }

  #launchRecording(instance: NativeInstance, events: ReadonlyArray<EventResource>, stream: StreamResource): number {
    for (const event of events) {
      const kept = this.#events.beforeRecord(event)
      if (kept !== success) return kept
    }
    const status = this.#launch(instance, stream)
    if (status === success) this.#noteRecords(events, stream)
    return status
  }

  #launch({ exec }: NativeInstance, resource: StreamResource): number {
    const { calls } = this.#driver
    const stream = nativeStream(resource)
    return stream.needsContext
      ? this.#launchInContext(exec, stream)
      : this.#driver.answer("cuGraphLaunch", calls.cuGraphLaunch(exec, stream.handle))
  }

  /** A function with a closure allocates whenever it is called, so this one is separate. */
  #launchInContext(exec: CUgraphExec, { deviceIndex, handle }: NativeStream): number {
    return this.#driver.inContextOf(deviceIndex, "cuGraphLaunch", () => this.#driver.calls.cuGraphLaunch(exec, handle))
  }

  #noteRecords(events: ReadonlyArray<EventResource>, resource: StreamResource): void {
    const stream = nativeStream(resource)
    for (const event of events) this.#events.noteRecord(event, stream, events.length === 1)
  }
}

const nodeAt = (words: Uint32Array, at: number): CUgraphNode => (words[at + 1]! * twoTo32 + words[at]!) as CUgraphNode
