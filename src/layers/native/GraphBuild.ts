/**
 * Makes the driver's graph of a recorded one. A node becomes several of the driver if its copy is split.
 */
import { conditionTypes } from "../../cuda/flags.ts"
import type { CUcontext, CUevent, CUgraph, CUgraphNode } from "../../cuda/handles.ts"
import { nullHandle, offsetBy } from "../../cuda/handles.ts"
import type { DriverLibrary } from "../../cuda/library.ts"
import { success } from "../../cuda/status.ts"
import type { RowsTransfer } from "../shared/copies.ts"
import { hasPriority } from "../shared/graphNodes.ts"
import type {
  Bindings,
  CapturedWork,
  ConditionalWork,
  FillWork,
  GraphNode,
  GraphResource,
  KernelWork,
  NodeWork
} from "../shared/graphNodes.ts"
import type { NativeCaptured } from "./captures.ts"
import { Out } from "./Device.ts"
import type { Driver } from "./Driver.ts"
import {
  AttributeBlock,
  attributesOf,
  ConditionBlock,
  CopyBlock,
  EdgeBlock,
  FillBlock,
  KernelBlock,
  SetterBlock
} from "./GraphBlocks.ts"
import type { Setter } from "./GraphBlocks.ts"
import { copyPieces, rowPieces } from "./pieces.ts"

/** The memory that calls for graphs pass structs in. */
export class GraphMemory {
  readonly copy: CopyBlock
  readonly fill: FillBlock
  readonly attribute: AttributeBlock
  readonly setter: SetterBlock
  readonly condition: ConditionBlock
  readonly #library: DriverLibrary
  #edges: EdgeBlock
  constructor(library: DriverLibrary) {
    this.#library = library
    this.copy = new CopyBlock(library)
    this.fill = new FillBlock(library)
    this.attribute = new AttributeBlock(library)
    this.setter = new SetterBlock(library)
    this.condition = new ConditionBlock(library)
    this.#edges = new EdgeBlock(library, 16)
  }

  edges(dependencies: ReadonlyArray<CUgraphNode>): EdgeBlock {
    const { length } = dependencies
    if (length > this.#edges.room) this.#edges = new EdgeBlock(this.#library, 2 * length)
    this.#edges.write(dependencies)
    return this.#edges
  }
}

/** The pieces of a copy, with its memory as it is bound. */
export const piecesOf = (
  work: Extract<NodeWork, { readonly kind: "copy" | "copy2D" }>,
  bindings: Bindings
): Array<RowsTransfer> => {
  const to = bindings.locate(work.transfer.to, work.transfer.toOffset)
  const from = bindings.locate(work.transfer.from, work.transfer.fromOffset)
  const ends = { to: to.memory, toOffset: to.offset, from: from.memory, fromOffset: from.offset }
  return work.kind === "copy" ? copyPieces({ ...work.transfer, ...ends }) : rowPieces({ ...work.transfer, ...ends })
}

/** Writes a fill, with its memory as it is bound. */
export const writeFill = (block: FillBlock, { bits, count, memory, offset, value }: FillWork, bindings: Bindings) => {
  const located = bindings.locate(memory, offset)
  if (located.memory.kind === "device") {
    block.write(offsetBy(located.memory.address, located.offset), value, bits, count)
  }
}

/** An empty node joins more pieces than this, since every piece of one node may depend on every piece of another. */
const mostEnds = 4

export class GraphBuild {
  handle = nullHandle<CUgraph>()
  readonly context: CUcontext
  /** Whether a launch has a priority. */
  readonly usesPriorities: boolean
  /** By node, those of the driver that do its work. */
  readonly nodes: Array<ReadonlyArray<CUgraphNode>> = []
  /** By conditional node, the kernels that pass its value to the driver. */
  readonly setters: Array<ReadonlyArray<Setter>> = []
  /** The node that could not be added. */
  failed: number | undefined
  /** The graph that nodes are added to: the whole one, or a body of a condition. */
  #into = nullHandle<CUgraph>()
  /** By node, those of the driver that end it. */
  readonly #ends: Array<ReadonlyArray<CUgraphNode>> = []
  readonly #driver: Driver
  readonly #memory: GraphMemory
  readonly #graph: GraphResource
  readonly #bindings: Bindings
  readonly #kernel: KernelBlock
  /** The event that marks record until they are given others; undefined if they do nothing. */
  readonly #idle: CUevent | undefined
  /** The nodes of marks. */
  readonly #marks = new Set<CUgraphNode>()

  constructor(
    driver: Driver,
    memory: GraphMemory,
    graph: GraphResource,
    bindings: Bindings,
    idle?: CUevent
  ) {
    this.#driver = driver
    this.#memory = memory
    this.#graph = graph
    this.#bindings = bindings
    this.#idle = idle
    this.context = driver.device(graph.deviceIndex).context
    this.usesPriorities = graph.nodes.some(hasPriority)
    this.#kernel = new KernelBlock(driver.library, this.context)
  }

  /** Makes the graph. The context must be current. */
  run(): number {
    const out = new Out<CUgraph>()
    const created = this.#driver.calls.cuGraphCreate(out.words, 0)
    if (created !== success) return this.#driver.answer("cuGraphCreate", created)
    this.handle = this.#into = out.value
    const status = this.#addAll(this.#graph.nodes.filter(({ inside }) => inside === undefined))
    if (status !== success) this.destroy()
    return status
  }

  #addAll(nodes: ReadonlyArray<GraphNode>): number {
    for (const node of nodes) {
      const status = this.#add(node)
      if (status === success) continue
      this.failed ??= node.index
      return status
    }
    return success
  }

  /** Destroys a graph that is no longer needed. */
  destroy(): void {
    const { calls, warn } = this.#driver
    warn("cuGraphDestroy", calls.cuGraphDestroy(this.handle), this.handle)
  }

  /** The index of the node that one of the driver belongs to; undefined for none. */
  indexOf(node: CUgraphNode): number | undefined {
    if (node === 0) return undefined
    const isThere = (nodes: ReadonlyArray<CUgraphNode> | undefined) => nodes?.includes(node) === true
    const index = this.nodes.findIndex(isThere)
    const found = index >= 0 ? index : this.#ends.findIndex(isThere)
    return found >= 0 ? found : undefined
  }

  #add(node: GraphNode): number {
    const { index } = node
    const before = this.#endsOf(node.dependencies)
    const added: Array<CUgraphNode> = []
    const status = this.#addWork(node, before, added)
    if (status !== success) return status
    this.nodes[index] = added
    if (this.#isRecording(index)) this.#marks.add(added[0]!)
    const ends = this.#isSkipped(node) ? before : added
    if (ends.length <= mostEnds) {
      this.#ends[index] = ends
      return success
    }
    const joined: Array<CUgraphNode> = []
    this.#ends[index] = joined
    return this.#addEmpty(ends, joined)
  }

  /** True for a mark that records nothing. What comes after it depends on what comes before. */
  #isSkipped({ index, kind }: GraphNode): boolean {
    return kind === "mark" && !this.#isRecording(index)
  }

  /** True for a mark that records an event. */
  #isRecording(index: number): boolean {
    return this.#idle !== undefined && this.#graph.marks.has(index)
  }

  #addWork(
    { index, work }: GraphNode,
    before: ReadonlyArray<CUgraphNode>,
    added: Array<CUgraphNode>
  ): number {
    switch (work.kind) {
      case "mark":
        return this.#isRecording(index) ? this.#addRecord(this.#idle!, before, added) : success
      case "conditional":
        return this.#addConditional(index, work, before, added)
      case "kernel":
        return this.#addKernel(work, this.#isEarly(work, before), before, added)
      case "fill":
        return this.#addFill(work, before, added)
      case "graph":
        return this.#addCaptured(work, before, added)
      case "record":
        return this.#addRecord(work.event.own, before, added)
      default:
        for (const piece of piecesOf(work, this.#bindings)) {
          const status = this.#addPiece(piece, before, added)
          if (status !== success) return status
        }
        return success
    }
  }

  /** Whether a kernel starts before the one that it depends on has finished. A mark that records an event between them prevents that. */
  #isEarly({ startsEarly }: KernelWork, before: ReadonlyArray<CUgraphNode>): boolean {
    if (!startsEarly || this.#driver.calls.cuGraphAddDependencies_v2 === undefined) return false
    return !before.some((node) => this.#marks.has(node))
  }

  #addKernel(
    work: KernelWork,
    isEarly: boolean,
    before: ReadonlyArray<CUgraphNode>,
    added: Array<CUgraphNode>
  ): number {
    const { calls } = this.#driver
    const edges = this.#memory.edges(before)
    const plain = isEarly ? 0 : before.length
    this.#kernel.write(work, this.#bindings)
    const status = this.#added(
      "cuGraphAddKernelNode",
      calls.cuGraphAddKernelNode_v2(edges.address, this.#into, edges.dependencies, plain, this.#kernel.address),
      edges,
      added
    )
    if (status !== success) return status
    const attributed = this.#setAttributes(edges.node, work)
    return attributed === success && isEarly ? this.#startEarly(edges) : attributed
  }

  #setAttributes(node: CUgraphNode, work: KernelWork): number {
    const { attribute } = this.#memory
    for (const [id, values] of attributesOf(work)) {
      attribute.write(...values)
      const status = this.#driver.calls.cuGraphKernelNodeSetAttribute(node, id, attribute.address)
      if (status !== success) return this.#driver.answer("cuGraphKernelNodeSetAttribute", status)
    }
    return success
  }

  /**
   * A condition per body, none of which is true for a value without a body. All of them are set before any body runs, because a body may
   * change the value.
   */
  #addConditional(
    index: number,
    work: ConditionalWork,
    before: ReadonlyArray<CUgraphNode>,
    added: Array<CUgraphNode>
  ): number {
    const setters: Array<Setter> = []
    this.setters[index] = setters
    for (const body of work.bodies.keys()) {
      const status = this.#createSetter(work, body, before, setters)
      if (status !== success) return status
    }
    const set = setters.map(({ node }) => node)
    const first = set.length
    for (const [body, nodes] of work.bodies.entries()) {
      const status = this.#addBody(work, setters[body]!, nodes, set.slice(0, first), added, setters)
      if (status !== success) return status
    }
    return success
  }

  #createSetter(
    work: ConditionalWork,
    body: number,
    before: ReadonlyArray<CUgraphNode>,
    setters: Array<Setter>
  ): number {
    const { condition } = this.#memory
    const create = this.#driver.calls.cuGraphConditionalHandleCreate!
    const created = create(condition.handleAddress, this.#into, this.context, 0, 0)
    if (created !== success) return this.#driver.answer("cuGraphConditionalHandleCreate", created)
    const isMatch = work.condition === "match"
    const negated = !isMatch && body === 0
    const expected = isMatch ? body : 0
    const kernel = work.setter!.handle
    return this.#addSetter(work, { kernel, condition: condition.handle, expected, negated }, before, setters)
  }

  #addSetter(
    { value }: ConditionalWork,
    setter: Omit<Setter, "node">,
    before: ReadonlyArray<CUgraphNode>,
    setters: Array<Setter>
  ): number {
    const { calls } = this.#driver
    const { setter: block } = this.#memory
    const edges = this.#memory.edges(before)
    const { memory, offset } = this.#bindings.locate(value.memory, value.offset)
    block.write(setter, this.context, memory.address + offset)
    const { address, dependencies } = edges
    const status = calls.cuGraphAddKernelNode_v2(address, this.#into, dependencies, before.length, block.address)
    if (status === success) setters.push({ ...setter, node: edges.node })
    return this.#driver.answer("cuGraphAddKernelNode", status)
  }

  /** Adds a conditional node with one body. The body of a loop ends with a kernel that passes the value to the driver again. */
  #addBody(
    work: ConditionalWork,
    setter: Setter,
    nodes: ReadonlyArray<number>,
    before: ReadonlyArray<CUgraphNode>,
    added: Array<CUgraphNode>,
    setters: Array<Setter>
  ): number {
    const { calls, library } = this.#driver
    const { condition } = this.#memory
    const isLoop = work.condition === "while"
    const edges = this.#memory.edges(before)
    condition.write(setter.condition, isLoop ? conditionTypes.while : conditionTypes.if, this.context)
    const { address, dependencies } = edges
    const { length } = before
    const status = this.#added(
      "cuGraphAddNode",
      calls.cuGraphAddNode_v2!(address, this.#into, dependencies, nullHandle(), length, condition.address),
      edges,
      added
    )
    if (status !== success) return status
    const outer = this.#into
    this.#into = library.readAddress(condition.bodies) as CUgraph
    const inside = this.#addAll(nodes.map((node) => this.#graph.nodes[node]!))
    const last = inside === success && isLoop ? this.#addSetter(work, setter, this.#sinksOf(nodes), setters) : inside
    this.#into = outer
    return last
  }

  /** The driver's nodes that nothing in the body comes after. */
  #sinksOf(nodes: ReadonlyArray<number>): ReadonlyArray<CUgraphNode> {
    const followed = new Set(nodes.flatMap((node) => this.#graph.nodes[node]!.dependencies))
    return this.#endsOf(nodes.filter((node) => !followed.has(node)))
  }

  /** The driver's nodes that end some nodes. Marks that do nothing share those before them, and the driver accepts none twice. */
  #endsOf(nodes: ReadonlyArray<number>): ReadonlyArray<CUgraphNode> {
    const ends = nodes.flatMap((node) => this.#ends[node]!)
    return ends.length < 2 ? ends : Array.from(new Set(ends))
  }

  /** Connects the new node with its only dependency, so that it may start before that has finished. */
  #startEarly({ address, dependencies, edge }: EdgeBlock): number {
    const status = this.#driver.calls.cuGraphAddDependencies_v2!(this.#into, dependencies, address, edge, 1)
    return this.#driver.answer("cuGraphAddDependencies", status)
  }

  #addPiece(piece: RowsTransfer, before: ReadonlyArray<CUgraphNode>, added: Array<CUgraphNode>): number {
    const { calls } = this.#driver
    const { copy } = this.#memory
    const edges = this.#memory.edges(before)
    copy.write(piece)
    const { address, dependencies } = edges
    const { length } = before
    return this.#added(
      "cuGraphAddMemcpyNode",
      calls.cuGraphAddMemcpyNode(address, this.#into, dependencies, length, copy.address, this.context),
      edges,
      added
    )
  }

  #addFill(work: FillWork, before: ReadonlyArray<CUgraphNode>, added: Array<CUgraphNode>): number {
    const { calls } = this.#driver
    const { fill } = this.#memory
    const edges = this.#memory.edges(before)
    writeFill(fill, work, this.#bindings)
    const { address, dependencies } = edges
    const { length } = before
    return this.#added(
      "cuGraphAddMemsetNode",
      calls.cuGraphAddMemsetNode(address, this.#into, dependencies, length, fill.address, this.context),
      edges,
      added
    )
  }

  #addRecord(event: CUevent, before: ReadonlyArray<CUgraphNode>, added: Array<CUgraphNode>): number {
    const { calls } = this.#driver
    const edges = this.#memory.edges(before)
    return this.#added(
      "cuGraphAddEventRecordNode",
      calls.cuGraphAddEventRecordNode(edges.address, this.#into, edges.dependencies, before.length, event),
      edges,
      added
    )
  }

  #addCaptured({ captured }: CapturedWork, before: ReadonlyArray<CUgraphNode>, added: Array<CUgraphNode>): number {
    const { calls } = this.#driver
    const edges = this.#memory.edges(before)
    const { address, dependencies } = edges
    const { handle } = captured as NativeCaptured
    return this.#added(
      "cuGraphAddChildGraphNode",
      calls.cuGraphAddChildGraphNode(address, this.#into, dependencies, before.length, handle),
      edges,
      added
    )
  }

  #addEmpty(before: ReadonlyArray<CUgraphNode>, added: Array<CUgraphNode>): number {
    const { calls } = this.#driver
    const edges = this.#memory.edges(before)
    return this.#added(
      "cuGraphAddEmptyNode",
      calls.cuGraphAddEmptyNode(edges.address, this.#into, edges.dependencies, before.length),
      edges,
      added
    )
  }

  /** Notes a node that was added. */
  #added(call: string, status: number, edges: EdgeBlock, added: Array<CUgraphNode>): number {
    if (status === success) added.push(edges.node)
    return this.#driver.answer(call, status)
  }
}
