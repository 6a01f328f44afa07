/**
 * The scratch memory of a graph: where each buffer that the program allocated lies. Buffers share bytes if the edges of the
 * graph put all uses of one before all uses of the other.
 */
import { alignUp } from "../../cuda/parameters.ts"
import type { GraphNode, ScratchPart } from "./graphNodes.ts"
import type { DeviceMemoryResource } from "./resources.ts"

/** Alignment of the driver's allocations. */
const alignment = 256

/** Above this number of nodes, the order of all pairs takes too much memory, and nothing is shared. */
const mostNodes = 16_384

interface Placed {
  readonly buffer: number
  readonly from: number
  readonly to: number
}

/** Lays out the buffers, largest first, each at the lowest offset that no conflicting buffer occupies. */
export const layOutScratch = (
  nodes: ReadonlyArray<GraphNode>,
  buffers: ReadonlyArray<DeviceMemoryResource>
): { readonly parts: ReadonlyArray<ScratchPart>; readonly byteLength: number } => {
  const uses = usesOf(nodes, buffers)
  const isBefore = orderOf(nodes, uses)
  const used = buffers.flatMap((_, index) => uses[index]!.length === 0 ? [] : [index])
  used.sort((a, b) => buffers[b]!.byteLength - buffers[a]!.byteLength)
  const placed: Array<Placed> = []
  for (const buffer of used) {
    const rivals = placed.filter((other) => !isBefore(other.buffer, buffer) && !isBefore(buffer, other.buffer))
    const from = lowestGap(rivals, buffers[buffer]!.byteLength)
    placed.push({ buffer, from, to: from + buffers[buffer]!.byteLength })
  }
  return {
    parts: placed.map(({ buffer, from }) => ({ slot: buffers[buffer]!.slot!.index, offset: from })),
    byteLength: Math.max(0, ...placed.map(({ to }) => to))
  }
}

const lowestGap = (rivals: ReadonlyArray<Placed>, byteLength: number): number => {
  let from = 0
  for (const rival of rivals.toSorted((a, b) => a.from - b.from)) {
    if (rival.from >= from + byteLength) break
    from = Math.max(from, alignUp(rival.to, alignment))
  }
  return from
}

/** The nodes that use each buffer. A body may run many times, so its uses are those of the outermost condition. */
const usesOf = (
  nodes: ReadonlyArray<GraphNode>,
  buffers: ReadonlyArray<DeviceMemoryResource>
): ReadonlyArray<ReadonlyArray<number>> => {
  const uses = new Map(buffers.map((buffer): [unknown, Array<number>] => [buffer, []]))
  for (const node of nodes) {
    const memories = new Set([...node.reads, ...node.writes].map((range) => range.memory))
    for (const memory of memories) uses.get(memory)?.push(outermost(nodes, node).index)
  }
  return buffers.map((buffer) => uses.get(buffer)!)
}

const outermost = (nodes: ReadonlyArray<GraphNode>, node: GraphNode): GraphNode =>
  node.inside === undefined ? node : outermost(nodes, nodes[node.inside.nodeIndex]!)

/** Tells whether all uses of one buffer come before all uses of another. */
const orderOf = (
  nodes: ReadonlyArray<GraphNode>,
  uses: ReadonlyArray<ReadonlyArray<number>>
): (one: number, other: number) => boolean => {
  if (uses.length < 2 || nodes.length > mostNodes) return () => false
  const words = Math.ceil(nodes.length / 32)
  const ancestors = ancestorsOf(nodes, words)
  const common = uses.map((own) => {
    const all = new Uint32Array(words).fill(own.length === 0 ? 0 : 0xffff_ffff)
    for (const node of own) for (let word = 0; word < words; word++) all[word]! &= ancestors[node * words + word]!
    return all
  })
  return (one, other) => uses[one]!.every((node) => (common[other]![node >>> 5]! & (1 << (node & 31))) !== 0)
}

/** By node, a set of the nodes that come before it. */
const ancestorsOf = (nodes: ReadonlyArray<GraphNode>, words: number): Uint32Array => {
  const ancestors = new Uint32Array(nodes.length * words)
  for (const { dependencies, index } of nodes) {
    const own = ancestors.subarray(index * words, (index + 1) * words)
    for (const dependency of dependencies) {
      const theirs = ancestors.subarray(dependency * words, (dependency + 1) * words)
      for (let word = 0; word < words; word++) own[word]! |= theirs[word]!
      own[dependency >>> 5]! |= 1 << (dependency & 31)
    }
  }
  return ancestors
}
