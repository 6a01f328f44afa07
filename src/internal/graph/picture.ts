/**
 * Diagrams of a recorded graph as text.
 */
import type { GraphNodeRef } from "../../layers/CudaRuntime.ts"
import { dotText, mermaidText } from "../diagrams.ts"

/** Shapes that tell kinds of nodes apart. */
const mermaidShapes = {
  kernel: ["[", "]"],
  copy: ["[/", "/]"],
  copy2D: ["[/", "/]"],
  fill: ["(", ")"],
  record: ["{{", "}}"]
} as const

const dotShapes = {
  kernel: "box",
  copy: "parallelogram",
  copy2D: "parallelogram",
  fill: "ellipse",
  record: "hexagon"
} as const

export const mermaid = (nodes: ReadonlyArray<GraphNodeRef>): string => {
  const lines = ["flowchart TD"]
  for (const { index, kind, name } of nodes) {
    const [open, close] = mermaidShapes[kind]
    lines.push(`  n${index}${open}"${mermaidText(name)}"${close}`)
  }
  for (const { dependencies, index } of nodes) {
    for (const dependency of dependencies) lines.push(`  n${dependency} --> n${index}`)
  }
  return lines.join("\n")
}

export const dot = (nodes: ReadonlyArray<GraphNodeRef>): string => {
  const lines = ["digraph recorded {"]
  for (const { index, kind, name } of nodes) {
    lines.push(`  n${index} [shape=${dotShapes[kind]}, label="${dotText(name)}"]`)
  }
  for (const { dependencies, index } of nodes) {
    for (const dependency of dependencies) lines.push(`  n${dependency} -> n${index}`)
  }
  lines.push("}")
  return lines.join("\n")
}
