/**
 * A model of the stub driver's graphs, made from its calls: the kernels of each executable graph, with their arguments.
 */
import { assert } from "@effect/vitest"
import type { DriverCall } from "./stubDriver.ts"
import type { Line } from "./tracing.ts"

/** The bytes of each argument of a kernel. */
export type ArgumentBytes = ReadonlyArray<string>

interface KernelNode {
  readonly node: number
  /** The kernel, its sizes, and its context. */
  readonly config: Line
  readonly args: ArgumentBytes
}

/** The first values of a call that describes a kernel. */
const configLength = 9

export class DriverGraphs {
  /** By graph, in the order of creation. Those in the bodies of conditions belong to the whole graph. */
  readonly #graphs = new Map<number, Array<KernelNode>>()
  readonly #execs = new Map<number, Array<KernelNode>>()
  /** The kernels of the graph that was made last. Graphs are made one after another. */
  #building: Array<KernelNode> = []

  /** Follows calls of the driver. Returns the kernels of each launch, in the order of creation. */
  follow(calls: ReadonlyArray<DriverCall>): ReadonlyArray<ReadonlyArray<ArgumentBytes>> {
    const launches: Array<ReadonlyArray<ArgumentBytes>> = []
    for (const { args, name, status, times } of calls) {
      if (status !== 0) continue
      if (name === "cuGraphLaunch") {
        const launched = this.#kernels(args[0]).map((kernel) => kernel.args)
        for (let time = 0; time < times; time++) launches.push(launched)
      } else this.#change(name, args)
    }
    return launches
  }

  #change(name: DriverCall["name"], args: Line): void {
    switch (name) {
      case "cuGraphCreate":
        this.#building = []
        this.#graphs.set(Number(args[0]), this.#building)
        return
      case "cuGraphAddKernelNode_v2":
        this.#building.push(kernelNode(args.at(-1), args.slice(0, -3)))
        return
      case "cuGraphInstantiateWithParams":
        this.#execs.set(Number(args.at(-1)), [...this.#graphs.get(Number(args[0]))!])
        return
      case "cuGraphExecKernelNodeSetParams_v2":
        return this.#set(args[0], kernelNode(args[1], args.slice(2)))
      case "cuGraphExecUpdate_v2":
        return this.#update(args[0], this.#graphs.get(Number(args[1]))!)
    }
  }

  #kernels(exec: number | string | undefined): Array<KernelNode> {
    return this.#execs.get(Number(exec))!
  }

  /** Changes only the arguments of a kernel. */
  #set(exec: number | string | undefined, kernel: KernelNode): void {
    const kernels = this.#kernels(exec)
    const index = kernels.findIndex(({ node }) => node === kernel.node)
    assert.isAtLeast(index, 0, `the executable graph has node ${kernel.node}`)
    assert.deepStrictEqual(kernel.config, kernels[index]!.config, `the configuration of node ${kernel.node}`)
    kernels[index] = kernel
  }

  /** The driver pairs the nodes in the order of creation. The executable graph keeps the names of its own. */
  #update(exec: number | string | undefined, graph: ReadonlyArray<KernelNode>): void {
    const kernels = this.#kernels(exec)
    assert.lengthOf(graph, kernels.length)
    for (const [index, { node }] of kernels.entries()) kernels[index] = { ...graph[index]!, node }
  }
}

/** A kernel node, and what a call says of it: its configuration, and its arguments. */
const kernelNode = (node: number | string | undefined, description: Line): KernelNode => ({
  node: Number(node),
  config: description.slice(0, configLength),
  args: description.slice(configLength).map(String)
})
