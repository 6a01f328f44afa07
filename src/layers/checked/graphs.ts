/**
 * Graphs: races between the nodes of a graph, and what a launch uses.
 */
import type { GraphNodeRef, GraphRef, GraphValue, MemoryRange } from "../CudaRuntime.ts"
import { GraphResource } from "../shared/graphNodes.ts"
import { ownMemory } from "../shared/resources.ts"
import type { AnyMemoryResource } from "../shared/resources.ts"
import type { Use } from "./Checks.ts"
import { Pieces } from "./Pieces.ts"
import { raceOf } from "./reports.ts"
import type { CheckedAccess, Race } from "./reports.ts"

/** The most nodes whose order is looked at: that takes the square of their number in bits. */
export const mostNodes = 10_000

/** A use by a node. */
interface NodeUse {
  readonly node: GraphNodeRef
  readonly range: MemoryRange
  readonly writes: boolean
}

/** Two nodes that use the same bytes, with no path of edges between them. */
export interface NodeRace {
  readonly first: GraphNodeRef
  readonly second: GraphNodeRef
  readonly race: Race
}

/** Finds uses of the same bytes by nodes with no path of edges between them. */
export const racesIn = (graph: GraphRef): ReadonlyArray<Race> => nodeRacesIn(graph).map(({ race }) => race)

export const nodeRacesIn = ({ nodes }: GraphRef): ReadonlyArray<NodeRace> => {
  const order = new NodeOrder(nodes)
  const memories = new Map<AnyMemoryResource | "host" | "device", Pieces<NodeUse>>()
  const races: Array<NodeRace> = []
  for (const node of nodes) {
    for (const use of usesOf(node)) {
      const memory = ownMemory(use.range.memory)
      // Memory of the graph and of its parameters has no address yet.
      const key = memory.slot === undefined ? memory.kind : memory
      const pieces = memories.get(key) ?? new Pieces<NodeUse>(() => true)
      memories.set(key, pieces)
      const from = use.range.offset + (memory.slot === undefined ? memory.address : 0)
      const earlier = findConflict(order, pieces, use, from)
      if (earlier !== undefined) {
        races.push({ first: earlier.node, second: node, race: explain(earlier, use) })
      }
      note(pieces, use, from)
    }
  }
  return races
}

const usesOf = (node: GraphNodeRef): ReadonlyArray<NodeUse> => [
  ...node.reads.map((range) => ({ node, range, writes: false })),
  ...node.writes.map((range) => ({ node, range, writes: true }))
]

const findConflict = (
  order: NodeOrder,
  pieces: Pieces<NodeUse>,
  { node, range, writes }: NodeUse,
  from: number
): NodeUse | undefined => {
  let found: NodeUse | undefined
  pieces.visit(from, from + range.byteLength, ({ reads, write }) => {
    const others = [...write === undefined ? [] : [write], ...writes ? reads : []]
    found ??= others.find((other) => !order.areOrdered(other.node, node))
  })
  return found
}

const note = (pieces: Pieces<NodeUse>, use: NodeUse, from: number): void => {
  if (use.range.byteLength === 0) return
  pieces.update(
    from,
    from + use.range.byteLength,
    ({ reads, write }) => use.writes ? { write: use, reads: [] } : { write, reads: [...reads, use] }
  )
}

const printNode = ({ node, writes }: NodeUse): CheckedAccess => ({
  operation: node.operation,
  kind: writes ? "writes" : "reads",
  argument: undefined,
  stream: String(node),
  frame: node.frame
})

const explain = (first: NodeUse, second: NodeUse): Race => {
  const { byteLength, memory, offset } = second.range
  return raceOf({
    first: printNode(first),
    second: printNode(second),
    bytes: { memory: String(memory), offset, byteLength },
    missing: `No path of edges leads from ${String(first.node)} to ${String(second.node)}.`,
    fix: "Order their streams in the recording, with CudaStream.waitStream or CudaBranch."
  })
}

/** A condition around a node, and the body that the node is in. */
type Around = NonNullable<GraphNodeRef["inside"]>

/** Which nodes come before which, by the edges. */
class NodeOrder {
  readonly #nodes: ReadonlyArray<GraphNodeRef>
  readonly #width: number
  /** By node, a bit for each node that comes before it. */
  readonly #before: Uint32Array

  constructor(nodes: ReadonlyArray<GraphNodeRef>) {
    this.#nodes = nodes
    this.#width = Math.ceil(nodes.length / 32)
    this.#before = new Uint32Array(nodes.length * this.#width)
    for (const { dependencies, index } of nodes) {
      for (const other of dependencies) this.#follow(index, other)
    }
  }

  #follow(index: number, other: number): void {
    const before = this.#before
    const width = this.#width
    for (let word = 0; word < width; word++) before[index * width + word]! |= before[other * width + word]!
    before[index * width + (other >>> 5)]! |= 1 << (other & 31)
  }

  #isBefore(first: number, second: number): boolean {
    return (this.#before[second * this.#width + (first >>> 5)]! & (1 << (first & 31))) !== 0
  }

  /** Conditions around a node, the outermost first. */
  #around(node: GraphNodeRef): ReadonlyArray<Around> {
    const around: Array<Around> = []
    for (let at = node.inside; at !== undefined; at = this.#nodes[at.nodeIndex]!.inside) around.unshift(at)
    return around
  }

  /** Whether two nodes run one after the other, or never in the same launch. */
  areOrdered(one: GraphNodeRef, other: GraphNodeRef): boolean {
    const [ones, others] = [this.#around(one), this.#around(other)]
    let depth = 0
    while (isSame(ones[depth], others[depth])) depth++
    const first = ones[depth]?.nodeIndex ?? one.index
    const second = others[depth]?.nodeIndex ?? other.index
    return first === second || this.#isBefore(first, second) || this.#isBefore(second, first)
  }
}

const isSame = (one: Around | undefined, other: Around | undefined): boolean =>
  one !== undefined && one.nodeIndex === other?.nodeIndex && one.body === other.body

/** What launches of a graph use, with the parameter whose value each placeholder stands for. */
interface LaunchUse {
  readonly use: Use
  readonly parameter: number | undefined
}

const launchUses = new WeakMap<GraphRef, ReadonlyArray<LaunchUse>>()

const none: ReadonlySet<number> = new Set()

/** The uses of a launch: those of all nodes that are not disabled. */
export const ofGraphLaunch = (
  graph: GraphRef,
  values: ReadonlyArray<GraphValue>,
  disabled: ReadonlySet<number> = none
): Array<Use> => {
  if (!(graph instanceof GraphResource)) return []
  const uses: Array<Use> = []
  for (const { parameter, use } of plannedUses(graph, disabled)) {
    const resolved = parameter === undefined ? use : withValue(use, values[parameter])
    if (resolved !== undefined) uses.push(resolved)
  }
  return uses
}

const withValue = (use: Use, value: GraphValue | undefined): Use | undefined => {
  if (typeof value !== "object" || value === null) return undefined
  const memory = ownMemory(value.memory)
  const offset = value.offset + use.offset
  return memory.state === "live" ? { ...use, memory, offset } : undefined
}

const plannedUses = (graph: GraphResource, disabled: ReadonlySet<number>): ReadonlyArray<LaunchUse> => {
  const known = disabled.size === 0 ? launchUses.get(graph) : undefined
  if (known !== undefined) return known
  const nodes = graph.nodes.filter(({ index }) => !disabled.has(index))
  const reads = merged(nodes.flatMap((node) => node.reads))
  const writes = merged(nodes.flatMap((node) => node.writes))
  const planned = [...planOf(graph, reads, "reads"), ...planOf(graph, writes, "writes")]
  if (disabled.size === 0) launchUses.set(graph, planned)
  return planned
}

const planOf = (
  graph: GraphResource,
  ranges: ReadonlyArray<MemoryRange>,
  kind: "reads" | "writes"
): ReadonlyArray<LaunchUse> =>
  ranges.flatMap((range): ReadonlyArray<LaunchUse> => {
    const { slot } = ownMemory(range.memory)
    const use = { ...range, kind, argument: undefined }
    if (slot === undefined) return [{ use, parameter: undefined }]
    const parameter = graph.slotOf.indexOf(slot.index)
    // Memory of the graph itself: launches of an instance run one after the other.
    if (parameter < 0) return []
    return [{ use: { ...use, argument: graph.parameters[parameter]![0] }, parameter }]
  })

/** Merges ranges that overlap or touch. */
const merged = (ranges: ReadonlyArray<MemoryRange>): ReadonlyArray<MemoryRange> => {
  const byMemory = new Map<MemoryRange["memory"], Array<MemoryRange>>()
  for (const range of ranges) {
    if (range.byteLength === 0) continue
    const others = byMemory.get(range.memory)
    if (others === undefined) byMemory.set(range.memory, [range])
    else others.push(range)
  }
  return Array.from(byMemory.values(), mergedOf).flat()
}

const mergedOf = (ranges: ReadonlyArray<MemoryRange>): ReadonlyArray<MemoryRange> => {
  const result: Array<MemoryRange> = []
  for (const { byteLength, memory, offset } of ranges.toSorted((a, b) => a.offset - b.offset)) {
    const last = result.at(-1)
    if (last === undefined || offset > last.offset + last.byteLength) result.push({ memory, offset, byteLength })
    else {
      const end = Math.max(offset + byteLength, last.offset + last.byteLength)
      result[result.length - 1] = { memory, offset: last.offset, byteLength: end - last.offset }
    }
  }
  return result
}
