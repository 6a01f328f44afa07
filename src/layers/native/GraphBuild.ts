/**
 * Makes the driver's graph of a recorded one. A node becomes several of the driver if its copy is split.
 */
import type { CUcontext, CUgraph, CUgraphNode } from "../../cuda/handles.ts"
import { nullHandle, offsetBy } from "../../cuda/handles.ts"
import type { DriverLibrary } from "../../cuda/library.ts"
import { success } from "../../cuda/status.ts"
import type { RowsTransfer } from "../shared/copies.ts"
import type { Bindings, FillWork, GraphNode, GraphResource, KernelWork, NodeWork } from "../shared/graphNodes.ts"
import type { EventResource } from "../shared/resources.ts"
import { Out } from "./Device.ts"
import type { Driver } from "./Driver.ts"
import { AttributeBlock, attributesOf, CopyBlock, EdgeBlock, FillBlock, KernelBlock } from "./GraphBlocks.ts"
import { copyPieces, rowPieces } from "./pieces.ts"

/** The memory that calls for graphs pass structs in. */
export class GraphMemory {
  readonly copy: CopyBlock
  readonly fill: FillBlock
  readonly attribute: AttributeBlock
  readonly #library: DriverLibrary
  #edges: EdgeBlock
  constructor(library: DriverLibrary) {
    this.#library = library
    this.copy = new CopyBlock(library)
    this.fill = new FillBlock(library)
    this.attribute = new AttributeBlock(library)
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
  /** By node, those of the driver that do its work. */
  readonly nodes: Array<ReadonlyArray<CUgraphNode>> = []
  /** By node, those of the driver that end it. */
  readonly #ends: Array<ReadonlyArray<CUgraphNode>> = []
  readonly #driver: Driver
  readonly #memory: GraphMemory
  readonly #graph: GraphResource
  readonly #bindings: Bindings
  readonly #context: CUcontext
  readonly #kernel: KernelBlock

  constructor(driver: Driver, memory: GraphMemory, graph: GraphResource, bindings: Bindings) {
    this.#driver = driver
    this.#memory = memory
    this.#graph = graph
    this.#bindings = bindings
    this.#context = driver.device(graph.deviceIndex).context
    this.#kernel = new KernelBlock(driver.library, this.#context)
  }

  /** Makes the graph. If a node cannot be added, those before it are in `nodes`. The context must be current. */
  run(): number {
    const out = new Out<CUgraph>()
    const created = this.#driver.calls.cuGraphCreate(out.words, 0)
    if (created !== success) return this.#driver.answer("cuGraphCreate", created)
    this.handle = out.value
    for (const node of this.#graph.nodes) {
      const status = this.#add(node)
      if (status === success) continue
      this.destroy()
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
    const isThere = (nodes: ReadonlyArray<CUgraphNode>) => nodes.includes(node)
    const index = this.nodes.findIndex(isThere)
    const found = index >= 0 ? index : this.#ends.findIndex(isThere)
    return found >= 0 ? found : undefined
  }

  #add({ dependencies, work }: GraphNode): number {
    const before = dependencies.flatMap((index) => this.#ends[index]!)
    const added: Array<CUgraphNode> = []
    const status = this.#addWork(work, before, added)
    if (status !== success) return status
    if (added.length <= mostEnds) this.#ends.push(added)
    else {
      const joined: Array<CUgraphNode> = []
      const status = this.#addEmpty(added, joined)
      if (status !== success) return status
      this.#ends.push(joined)
    }
    this.nodes.push(added)
    return success
  }

  #addWork(work: NodeWork, before: ReadonlyArray<CUgraphNode>, added: Array<CUgraphNode>): number {
    switch (work.kind) {
      case "kernel":
        return this.#addKernel(work, before, added)
      case "fill":
        return this.#addFill(work, before, added)
      case "record":
        return this.#addRecord(work.event, before, added)
      default:
        for (const piece of piecesOf(work, this.#bindings)) {
          const status = this.#addPiece(piece, before, added)
          if (status !== success) return status
        }
        return success
    }
  }

  #addKernel(work: KernelWork, before: ReadonlyArray<CUgraphNode>, added: Array<CUgraphNode>): number {
    const { calls } = this.#driver
    const isEarly = work.startsEarly && calls.cuGraphAddDependencies_v2 !== undefined
    const edges = this.#memory.edges(before)
    const plain = isEarly ? 0 : before.length
    this.#kernel.write(work, this.#bindings)
    const status = this.#added(
      "cuGraphAddKernelNode",
      calls.cuGraphAddKernelNode_v2(edges.address, this.handle, edges.dependencies, plain, this.#kernel.address),
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

  /** Connects the new node with its only dependency, so that it may start before that has finished. */
  #startEarly({ address, dependencies, edge }: EdgeBlock): number {
    const status = this.#driver.calls.cuGraphAddDependencies_v2!(this.handle, dependencies, address, edge, 1)
    return this.#driver.answer("cuGraphAddDependencies", status)
  }

  /**
   * A copy between devices is a node of the graph's context, as one within a device. This has not been tried with two GPUs.
   */
  #addPiece(piece: RowsTransfer, before: ReadonlyArray<CUgraphNode>, added: Array<CUgraphNode>): number {
    const { calls } = this.#driver
    const { copy } = this.#memory
    const edges = this.#memory.edges(before)
    copy.write(piece)
    const { address, dependencies } = edges
    const { length } = before
    return this.#added(
      "cuGraphAddMemcpyNode",
      calls.cuGraphAddMemcpyNode(address, this.handle, dependencies, length, copy.address, this.#context),
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
      calls.cuGraphAddMemsetNode(address, this.handle, dependencies, length, fill.address, this.#context),
      edges,
      added
    )
  }

  #addRecord({ own }: EventResource, before: ReadonlyArray<CUgraphNode>, added: Array<CUgraphNode>): number {
    const { calls } = this.#driver
    const edges = this.#memory.edges(before)
    return this.#added(
      "cuGraphAddEventRecordNode",
      calls.cuGraphAddEventRecordNode(edges.address, this.handle, edges.dependencies, before.length, own),
      edges,
      added
    )
  }

  #addEmpty(before: ReadonlyArray<CUgraphNode>, added: Array<CUgraphNode>): number {
    const { calls } = this.#driver
    const edges = this.#memory.edges(before)
    return this.#added(
      "cuGraphAddEmptyNode",
      calls.cuGraphAddEmptyNode(edges.address, this.handle, edges.dependencies, before.length),
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
