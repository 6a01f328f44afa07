/**
 * A client of an HTTP server on this machine, in a process of its own: keeps 8 connections and one request on each, and
 * prints how long each request took, in microseconds. Arguments: the port, and how many requests for each line of
 * input.
 */
import { Agent, get } from "node:http"
import { createInterface } from "node:readline"

const connections = 8
const port = Number(process.argv[2])
const requests = Number(process.argv[3])
const agent = new Agent({ keepAlive: true, maxSockets: connections })

const request = (): Promise<number> =>
  new Promise((resolve, reject) => {
    const start = performance.now()
    const asked = get({ host: "127.0.0.1", port, agent }, (response) => {
      response.resume()
      response.on("end", () => resolve((performance.now() - start) * 1e3))
    })
    asked.on("error", reject)
  })

const askAll = async (): Promise<ReadonlyArray<number>> => {
  const latencies: Array<number> = []
  let left = requests
  const connection = async () => {
    while (left-- > 0) latencies.push(await request())
  }
  await Promise.all(Array.from({ length: connections }, connection))
  return latencies
}

for await (const _ of createInterface({ input: process.stdin })) {
  console.log((await askAll()).map((latency) => latency.toFixed(1)).join(" "))
}
agent.destroy()
