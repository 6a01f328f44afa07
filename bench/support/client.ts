/**
 * An HTTP client in a separate process, for a server on this machine: keeps 8 connections with one request each, and
 * prints the latency of each request in microseconds. Arguments: the port, and the number of requests per line of
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
