/**
 * Diagrams of a plan as text: tasks grouped by stream, in order, and waits between streams.
 */
import { dotText, mermaidText } from "../diagrams.ts"
import type { Dependencies, Plan } from "./plan.ts"

interface Edge {
  readonly from: number
  readonly to: number
  /** `next` on the same stream, a `wait` of one stream for another, or a dependency that is implied by others. */
  readonly kind: "next" | "wait" | "implied"
}

export interface Picture {
  readonly names: ReadonlyArray<string>
  readonly dependencies: Dependencies
  readonly plan: Plan
  /** Whether to draw implied dependencies too. */
  readonly all: boolean
}

export const mermaid = (picture: Picture): string => {
  const lines = ["flowchart TD"]
  for (const [stream, tasks] of streamsOf(picture).entries()) {
    lines.push(`  subgraph s${stream}["${titleOf(stream)}"]`)
    for (const task of tasks) lines.push(`    t${task}["${mermaidText(picture.names[task]!)}"]`)
    lines.push("  end")
  }
  for (const { from, kind, to } of edgesOf(picture)) {
    lines.push(`  t${from} ${kind === "next" ? "-->" : `-. ${kind} .->`} t${to}`)
  }
  return lines.join("\n")
}

export const dot = (picture: Picture): string => {
  const lines = ["digraph tasks {", "  node [shape=box]"]
  for (const [stream, tasks] of streamsOf(picture).entries()) {
    lines.push(`  subgraph cluster_${stream} {`, `    label="${titleOf(stream)}"`)
    for (const task of tasks) lines.push(`    t${task} [label="${dotText(picture.names[task]!)}"]`)
    lines.push("  }")
  }
  for (const { from, kind, to } of edgesOf(picture)) lines.push(`  t${from} -> t${to}${dotStyles[kind]}`)
  lines.push("}")
  return lines.join("\n")
}

const dotStyles = { next: "", wait: ` [style=dashed, label="wait"]`, implied: ` [style=dotted, label="implied"]` }

const titleOf = (stream: number): string => stream === 0 ? "current stream" : `stream ${stream}`

const streamsOf = ({ plan }: Picture): ReadonlyArray<ReadonlyArray<number>> => {
  const streams = Array.from({ length: plan.streams }, (): Array<number> => [])
  for (const [task, stream] of plan.streamOf.entries()) streams[stream]!.push(task)
  return streams
}

const edgesOf = ({ all, dependencies, plan }: Picture): ReadonlyArray<Edge> =>
  dependencies.flatMap((own, to) => {
    const previous = plan.previous[to]
    const waits = plan.waits[to]!
    const edges: Array<Edge> = waits.map((from) => ({ from, to, kind: "wait" }))
    if (previous !== undefined) edges.unshift({ from: previous, to, kind: "next" })
    if (!all) return edges
    const implied = own.filter((from) => from !== previous && !waits.includes(from))
    return [...edges, ...implied.map((from): Edge => ({ from, to, kind: "implied" }))]
  })
