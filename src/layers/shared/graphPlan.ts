/**
 * Turns a finished recording into a graph: what its launches use, and where its scratch buffers lie.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { GraphRegionRef } from "../CudaRuntime.ts"
import { GraphResource, handlesOf } from "./graphNodes.ts"
import type { GraphNode, NodeRange } from "./graphNodes.ts"
import type { ModuleResource } from "./moduleResources.ts"
import type { Recording } from "./Recording.ts"
import { refuseToRecord } from "./recordings.ts"
import type { AnyMemoryResource, Owner, PartitionResource } from "./resources.ts"
import { layOutScratch } from "./scratch.ts"

export const graphOf = (owner: Owner, recording: Recording): Effect.Effect<GraphResource, CudaError> => {
  const { events, finished: nodes, options, scratch, slotOf, slots } = recording
  const isScratch = new Set<AnyMemoryResource>(scratch)
  const [reads, writes] = [
    merge(nodes.map((node) => node.reads), isScratch),
    merge(nodes.map((node) => node.writes), isScratch)
  ]
  const stale = options.overwriteInputs === true ? undefined : staleInput(reads, writes)
  if (stale !== undefined) {
    return refuseToRecord(
      "CudaGraph.record",
      `the graph writes bytes of ${stale.memory} that it also reads, so a second launch would read what the first ` +
        "wrote. Use another buffer for the results, or set overwriteInputs"
    )
  }
  const { byteLength, parts } = layOutScratch(nodes, scratch)
  const used = [...reads, ...writes].map(({ memory }) => memory).filter(({ slot }) => slot === undefined)
  return Effect.succeed(
    new GraphResource(owner, {
      deviceIndex: options.deviceIndex,
      nodes,
      parameters: options.parameters,
      slotOf,
      usersOf: slotOf.map((slot, parameter) => usersOf(nodes, slot, parameter)),
      alignmentOf: slotOf.map((slot) => alignmentOf(nodes, slot)),
      slots,
      scratch: parts,
      scratchBytes: byteLength,
      memories: Array.from(new Set(used)),
      modules: modulesOf(nodes),
      partitions: partitionsOf(nodes),
      handles: handlesOf(nodes),
      events,
      reads,
      writes,
      ...regionsOf(nodes)
    })
  )
}

/** The nodes that use a parameter. */
const usersOf = (nodes: ReadonlyArray<GraphNode>, slot: number | undefined, parameter: number): ReadonlyArray<number> =>
  nodes.filter(({ reads, work, writes }) =>
    slot === undefined
      ? work.kind === "kernel" && work.scalars.some(({ index }) => index === parameter)
      : [...reads, ...writes].some(({ memory }) => memory.slot?.index === slot)
  ).map(({ index }) => index)

/** Fills of 16 and 32 bits need aligned memory, and so do the values of conditions. */
const alignmentOf = (nodes: ReadonlyArray<GraphNode>, slot: number | undefined): number => {
  const bits = nodes.map(({ work }) => {
    const [memory, own] = work.kind === "fill"
      ? [work.memory, work.bits]
      : work.kind === "conditional"
      ? [work.value.memory, 32]
      : [undefined, 8]
    return slot !== undefined && memory?.slot?.index === slot ? own : 8
  })
  return Math.max(8, ...bits) / 8
}

const modulesOf = (nodes: ReadonlyArray<GraphNode>): ReadonlyArray<ModuleResource> => {
  const modules = new Set<ModuleResource>()
  for (const { work } of nodes) if (work.kind === "kernel") modules.add(work.kernel.module)
  return Array.from(modules)
}

const partitionsOf = (nodes: ReadonlyArray<GraphNode>): ReadonlyArray<PartitionResource> => {
  const partitions = new Set<PartitionResource>()
  for (const { work } of nodes) {
    if ((work.kind === "kernel" || work.kind === "graph") && work.partition !== undefined) {
      partitions.add(work.partition)
    }
  }
  return Array.from(partitions)
}

/** The regions of a graph: those that can be measured, and how many cannot. */
export const regionsOf = (nodes: ReadonlyArray<GraphNode>): Pick<GraphResource, "regions" | "unmeasured" | "marks"> => {
  const regions: Array<GraphRegionRef> = []
  const marks = new Map<number, number>()
  const begun = new Map<GraphRegionRef, number>()
  for (const { index, inside, work } of nodes) {
    if (work.kind !== "mark") continue
    const began = begun.get(work.region)
    if (work.end === "begin") begun.set(work.region, index)
    else if (inside === undefined && began !== undefined) {
      marks.set(began, 2 * regions.length)
      marks.set(index, 2 * regions.length + 1)
      regions.push(work.region)
    }
  }
  return { regions, unmeasured: begun.size - regions.length, marks }
}

/** Merges ranges that overlap or touch, without those of scratch memory. */
const merge = (
  lists: ReadonlyArray<ReadonlyArray<NodeRange>>,
  isScratch: ReadonlySet<AnyMemoryResource>
): ReadonlyArray<NodeRange> => {
  const byMemory = new Map<AnyMemoryResource, Array<NodeRange>>()
  for (const range of lists.flat()) {
    if (isScratch.has(range.memory)) continue
    const ranges = byMemory.get(range.memory)
    if (ranges === undefined) byMemory.set(range.memory, [range])
    else ranges.push(range)
  }
  return Array.from(byMemory.values(), mergeOf).flat()
}

const mergeOf = (ranges: ReadonlyArray<NodeRange>): ReadonlyArray<NodeRange> => {
  const merged: Array<NodeRange> = []
  for (const range of ranges.toSorted((a, b) => a.offset - b.offset)) {
    const last = merged.at(-1)
    const end = range.offset + range.byteLength
    if (last === undefined || range.offset > last.offset + last.byteLength) merged.push(range)
    else merged[merged.length - 1] = { ...last, byteLength: Math.max(end - last.offset, last.byteLength) }
  }
  return merged
}

/** Bytes of pinned memory that are both read and written. */
const staleInput = (reads: ReadonlyArray<NodeRange>, writes: ReadonlyArray<NodeRange>): NodeRange | undefined =>
  reads.find((read) =>
    read.memory.kind === "host" &&
    writes.some((write) =>
      write.memory === read.memory && write.offset < read.offset + read.byteLength &&
      read.offset < write.offset + write.byteLength
    )
  )
