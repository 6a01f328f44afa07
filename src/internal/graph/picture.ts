/**
 * Diagrams of a recorded graph as text. The bodies of conditions are boxes around their nodes.
 */
import type { GraphNodeRef } from "../../layers/CudaRuntime.ts"
import { dotText, mermaidText } from "../diagrams.ts"

type Nodes = ReadonlyArray<GraphNodeRef>

/** Shapes that tell kinds of nodes apart. */
const mermaidShapes = {
  kernel: ["[", "]"],
  copy: ["[/", "/]"],
  copy2D: ["[/", "/]"],
  fill: ["(", ")"],
  record: ["{{", "}}"],
  mark: [">", "]"],
  conditional: ["{", "}"],
  graph: ["[[", "]]"]
} as const

const dotShapes = {
  kernel: "box",
  copy: "parallelogram",
  copy2D: "parallelogram",
  fill: "ellipse",
  record: "hexagon",
  mark: "cds",
  conditional: "diamond",
  graph: "box3d"
} as const

export const mermaid = (nodes: Nodes): string =>
  ["flowchart TD", ...mermaidNodes(nodes, undefined, "  "), ...mermaidEdges(nodes)].join("\n")

const mermaidNodes = (nodes: Nodes, around: GraphNodeRef["inside"], indent: string): ReadonlyArray<string> =>
  nodesIn(nodes, around).flatMap(({ index, kind, name }) => {
    const [open, close] = mermaidShapes[kind]
    return [
      `${indent}n${index}${open}"${mermaidText(name)}"${close}`,
      ...bodiesOf(nodes, index).flatMap((body) => [
        `${indent}subgraph n${index}b${body}["${mermaidText(`${name}, body ${body}`)}"]`,
        ...mermaidNodes(nodes, { nodeIndex: index, body }, `${indent}  `),
        `${indent}end`
      ])
    ]
  })

const mermaidEdges = (nodes: Nodes): ReadonlyArray<string> =>
  nodes.flatMap(({ dependencies, index }) => [
    ...dependencies.map((dependency) => `  n${dependency} --> n${index}`),
    ...bodiesOf(nodes, index).map((body) => `  n${index} -.-> n${index}b${body}`)
  ])

export const dot = (nodes: Nodes): string =>
  ["digraph recorded {", ...dotNodes(nodes, undefined, "  "), ...dotEdges(nodes), "}"].join("\n")

const dotNodes = (nodes: Nodes, around: GraphNodeRef["inside"], indent: string): ReadonlyArray<string> =>
  nodesIn(nodes, around).flatMap(({ index, kind, name }) => [
    `${indent}n${index} [shape=${dotShapes[kind]}, label="${dotText(name)}"]`,
    ...bodiesOf(nodes, index).flatMap((body) => [
      `${indent}subgraph cluster_n${index}b${body} {`,
      `${indent}  label="${dotText(`${name}, body ${body}`)}"`,
      ...dotNodes(nodes, { nodeIndex: index, body }, `${indent}  `),
      `${indent}}`
    ])
  ])

/** A dashed edge leads from a condition to the first node of each body. */
const dotEdges = (nodes: Nodes): ReadonlyArray<string> =>
  nodes.flatMap(({ dependencies, index, inside }) => [
    ...dependencies.map((dependency) => `  n${dependency} -> n${index}`),
    ...(inside !== undefined && nodesIn(nodes, inside)[0]?.index === index
      ? [`  n${inside.nodeIndex} -> n${index} [style=dashed]`]
      : [])
  ])

const nodesIn = (nodes: Nodes, around: GraphNodeRef["inside"]): Nodes =>
  nodes.filter(({ inside }) => inside?.nodeIndex === around?.nodeIndex && inside?.body === around?.body)

/** The bodies of a condition that have nodes. */
const bodiesOf = (nodes: Nodes, index: number): ReadonlyArray<number> =>
  Array.from(new Set(nodes.flatMap(({ inside }) => inside?.nodeIndex === index ? [inside.body] : [])))
